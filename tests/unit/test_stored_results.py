"""Jobs that are given out again are answered from their stored results, and only those."""

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import PurePosixPath

import pytest
from pydantic import SecretStr
from support.factories import OFFER, make_controlled_job, make_job

import pixpod
from pixpod.contract.payload import parse_job
from pixpod.errors import OutOfMemory, StorageDenied, StorageUnavailable
from pixpod.inputs.client import GuardedClient
from pixpod.inputs.intake import Intake
from pixpod.inputs.targets import Targets
from pixpod.job import Delivery
from pixpod.outputs.result_file import MAX_RESULT_BYTES, fingerprint
from pixpod.outputs.storage import InlineImageStore
from pixpod.serving.concurrency import Concurrency
from pixpod.serving.delivery import ImageDelivery
from pixpod.serving.job_results import ANSWERED_FROM_STORED
from pixpod.serving.refresh import Refresh
from pixpod.serving.stored_results import StoredResults
from pixpod.serving.worker import Worker
from pixpod.testing.fake_engine import FakeEngine
from pixpod.testing.memory_bucket import MemoryBucket

WITH_S3 = replace(OFFER, deliveries=(Delivery.S3, Delivery.INLINE))
JOB = make_job(num_images=2, output={"name": "poster", "key_prefix": "shop"})
CONTROLLED = make_controlled_job(num_images=2)


def build(bucket, engine=None, *, secret="hidden", limit_s=2.0, max_reply_bytes=10_000_000):
    return Worker(
        capabilities=WITH_S3,
        engine=engine or FakeEngine(),
        delivery=ImageDelivery(
            stores={Delivery.S3: bucket, Delivery.INLINE: InlineImageStore()},
            key_prefix="live",
            key_secret=SecretStr(secret),
            max_reply_bytes=max_reply_bytes,
        ),
        usd_per_gpu_second=0.5,
        concurrency=Concurrency(max_when_warm=1, is_warm=lambda: True, num_taken=lambda: 1),
        refresh=Refresh(after_images=0),
        intake=Intake(GuardedClient(Targets())),
        platform=None,
        worker_id="pod-1",
        max_job_s=60,
        results=StoredResults(store=bucket, secret=SecretStr(secret), limit_s=limit_s),
    )


def handle(worker, job=JOB):
    """Return the reply, once the worker has written the result."""

    async def run():
        reply = await worker.handle(job)
        await worker.results.settle()
        return reply

    return asyncio.run(run())


def is_stored(reply):
    return any("stored result" in warning for warning in reply["warnings"])


def result_key(bucket):
    (key,) = (key for key in bucket.files if key.endswith(".result"))
    return key


def images_without_links(reply):
    return [{**image, "url": None} for image in reply["images"]]


@pytest.fixture
def bucket():
    """A bucket with the result of JOB."""
    bucket = MemoryBucket()
    assert not is_stored(handle(build(bucket)))
    return bucket


@pytest.fixture
def engine():
    """An engine that takes long enough to be seen when it runs."""
    return FakeEngine(seconds=0.6)


# --- answered without the GPU ---------------------------------------------------------------


def test_job_that_comes_again_is_answered_from_its_stored_result():
    bucket, engine = MemoryBucket(), FakeEngine()
    worker = build(bucket, engine)
    first, second = handle(worker), handle(worker)
    assert len(engine.requests) == 1
    assert images_without_links(first) == images_without_links(second)
    links = {image["url"] for reply in (first, second) for image in reply["images"]}
    assert len(links) == 4, "they are fresh"
    assert (first["model"], first["steps"]) == (second["model"], second["steps"])
    assert second["cost"] == {
        "gpu": "cpu",
        "gpu_ms": 0.0,
        "estimated_usd": 0.0,
        "basis": "answered from a stored result",
    }
    assert list(second["timings_ms"]) == ["total"]
    assert not first["warnings"] and is_stored(second)
    assert second["worker"]["images_served"] == 2, "no more were generated"


def test_refiner_is_named_both_times():
    job = make_job(refiner={"num_inference_steps": 2})
    worker = build(MemoryBucket())
    first, second = handle(worker, job), handle(worker, job)
    assert is_stored(second)
    assert first["refiner"] == second["refiner"] == {"name": "sdxl-refiner-tiny", "steps": 2}


def test_control_images_come_again_with_the_images():
    worker = build(MemoryBucket())
    first, second = handle(worker, CONTROLLED), handle(worker, CONTROLLED)
    assert is_stored(second)
    for reply in (first, second):
        assert [control["index"] for control in reply["controls"]] == [0]
        assert len(reply["images"]) == 2
        assert "/poster-2-" in f"/{PurePosixPath(reply['controls'][0]['key']).name}"
    assert first["controls"][0]["sha256"] == second["controls"][0]["sha256"]
    assert second["worker"]["images_served"] == 2


def test_inline_control_images_that_do_not_fit_are_in_the_bucket():
    output = {**CONTROLLED["input"]["output"], "delivery": "inline"}
    job = {"id": "job-1", "input": {**CONTROLLED["input"], "output": output}}
    reply = handle(build(MemoryBucket(), max_reply_bytes=1_000), job)
    assert [len(reply[name]) for name in ("images", "controls")] == [2, 1]
    assert all("url" in each for name in ("images", "controls") for each in reply[name])


def test_another_worker_takes_the_job_from_its_queue(bucket):
    engine = FakeEngine(seconds=600)
    assert is_stored(handle(build(bucket, engine)))


def test_result_file_is_beside_the_images_and_has_no_prompt_and_no_link(bucket):
    folders = {str(PurePosixPath(key).parent) for key in bucket.files}
    assert folders == {"live/shop/job-1"}
    text = bucket.files[result_key(bucket)].decode()
    for word in ("red", "circle", "memory:", "poster", "shop"):
        assert word not in text


# --- misses ---------------------------------------------------------------------------------


def test_other_request_under_the_same_id_is_generated(bucket):
    for changes in ({"seed": 3}, {"prompt": "a blue circle"}, {"output": {"name": "poster"}}):
        job = {**JOB, "input": {**JOB["input"], **changes}}
        assert not is_stored(handle(build(bucket), job))


def test_job_of_another_id_is_generated(bucket):
    assert not is_stored(handle(build(bucket), {**JOB, "id": "job-2"}))


def forged(data):
    seal, _, content = data.partition(b"\n")
    return seal + b"\n" + content.replace(b'"steps":', b'"steps":1')


@pytest.mark.parametrize(
    "damage",
    [
        forged,
        lambda data: data[:-1],
        lambda data: data[:64],
        lambda data: b"",
        lambda data: b"\xff" * 100,
        lambda data: data + b" " * MAX_RESULT_BYTES,
        lambda data: data.upper(),
    ],
    ids=["forged", "cut", "seal only", "empty", "binary", "endless", "capitals"],
)
def test_damaged_file_is_a_miss_and_is_logged(bucket, damage, caplog):
    key = result_key(bucket)
    bucket.files[key] = damage(bucket.files[key])
    assert not is_stored(handle(build(bucket)))
    assert [each.message for each in caplog.records] == ["stored result is not used"]


def test_file_that_was_copied_from_another_job_is_a_miss_and_is_logged(bucket, caplog):
    key = result_key(bucket)
    other = MemoryBucket()
    handle(build(other), {**JOB, "id": "job-2"})
    bucket.files[key] = other.files[result_key(other)]
    assert not is_stored(handle(build(bucket)))
    assert [each.message for each in caplog.records] == ["stored result is not used"]


def test_file_of_another_secret_is_a_miss(bucket, caplog):
    """The key would differ as well, so somebody has put it there."""
    mine = MemoryBucket()
    handle(build(mine, secret="mine"))
    mine.files[result_key(mine)] = bucket.files[result_key(bucket)]
    assert not is_stored(handle(build(mine, secret="mine")))
    assert [each.message for each in caplog.records] == ["stored result is not used"]


def test_file_of_another_version_is_a_miss(bucket, monkeypatch):
    monkeypatch.setattr(pixpod, "__version__", "99.0")
    assert not is_stored(handle(build(bucket)))


@pytest.mark.parametrize("change", [lambda data: None, lambda data: data + b"x"])
def test_image_that_is_gone_or_has_another_size_is_a_miss(bucket, change):
    key = next(key for key in bucket.files if "poster-1-" in key)
    data = change(bucket.files.pop(key))
    if data is not None:
        bucket.files[key] = data
    assert not is_stored(handle(build(bucket)))


# --- idempotency keys -----------------------------------------------------------------------


def with_key(id="job-1", key="order-7", **input):
    return {**make_job(idempotency_key=key, **input), "id": id}


def test_second_job_with_a_key_is_answered_from_the_first():
    bucket, engines = MemoryBucket(), (FakeEngine(), FakeEngine())
    replies = [
        asyncio.run(build(bucket, engine).handle(with_key(id)))
        for engine, id in zip(engines, ("job-1", "job-2"), strict=True)
    ]
    assert [len(engine.requests) for engine in engines] == [1, 0]
    assert images_without_links(replies[0]) == images_without_links(replies[1])
    assert [is_stored(reply) for reply in replies] == [False, True]
    (image,) = replies[0]["images"]
    assert image["key"].startswith("live/key-")
    assert "order-7" not in image["key"]


def test_key_with_another_request_is_refused():
    bucket, engine = MemoryBucket(), FakeEngine()
    worker = build(bucket, engine)
    handle(worker, with_key())
    error = handle(worker, with_key("job-2", prompt="a blue circle"))["error"]
    assert error.startswith("invalid_input: ")
    (problem,) = json.loads(error.removeprefix("invalid_input: "))["problems"]
    assert (problem["field"], problem["value"]) == ("idempotency_key", "7 characters")
    assert problem["accepted"] == "a key that was not used for another request"
    assert len(engine.requests) == 1
    assert is_stored(handle(worker, with_key("job-3"))), "the stored result stays"


def test_absent_fields_and_their_defaults_are_the_same_request():
    worker = build(MemoryBucket())
    handle(worker, with_key())
    defaults = OFFER.models["sdxl-tiny"].defaults
    explicit = {"num_images": 1, "width": defaults.width, "output": {"format": "png"}}
    assert is_stored(handle(worker, with_key("job-2", **explicit)))


def test_callers_with_other_prefixes_do_not_meet():
    worker = build(MemoryBucket())
    replies = [
        handle(worker, with_key(output={"key_prefix": key_prefix})) for key_prefix in ("a", "b", "")
    ]
    assert [is_stored(reply) for reply in replies] == [False] * 3
    assert len({image["seed"] for reply in replies for image in reply["images"]}) == 3


def test_key_that_is_a_job_id_does_not_meet_it():
    worker = build(MemoryBucket())
    replies = [handle(worker, make_job()), handle(worker, with_key("job-2", "job-1"))]
    assert [is_stored(reply) for reply in replies] == [False] * 2


def test_job_with_a_key_waits_for_the_look_up_and_runs_if_that_fails(caplog):
    engine = FakeEngine()
    worker = build(MemoryBucket(fail_with=StorageUnavailable("down")), engine)
    assert handle(worker, with_key())["images"]
    assert len(engine.requests) == 1
    assert caplog.records[0].message == "stored result not looked up"


@pytest.mark.parametrize("delivery", ["inline", "directory"])
def test_key_needs_delivery_to_the_bucket(delivery):
    error = handle(build(MemoryBucket()), with_key(output={"delivery": delivery}))["error"]
    problems = json.loads(error.removeprefix("invalid_input: "))["problems"]
    assert problems[-1]["field"] == "idempotency_key"
    assert problems[-1]["hint"] == "set output.delivery to s3"


# --- no job is the worse for it -------------------------------------------------------------


@pytest.mark.parametrize("method", ["put_file", "get_file", "find"])
def test_one_passing_fault_of_the_bucket_loses_no_result(method, engine, caplog):
    class Flaky(MemoryBucket):
        num_faults = 1

        async def put_file(self, data, key):
            self.fail("put_file")
            await super().put_file(data, key)

        async def get_file(self, key, max_bytes):
            self.fail("get_file")
            return await super().get_file(key, max_bytes)

        async def find(self, image, key):
            self.fail("find")
            return await super().find(image, key)

        def fail(self, name):
            if name == method and self.num_faults:
                self.num_faults -= 1
                raise StorageUnavailable("down")

    bucket = Flaky()
    assert not is_stored(handle(build(bucket, engine)))
    if method == "get_file":
        bucket.num_faults = 1
    assert is_stored(handle(build(bucket, engine)))
    assert bucket.num_faults == 0
    assert caplog.records == []


@pytest.mark.parametrize(
    "error", [StorageUnavailable("down"), StorageDenied("no"), RuntimeError("internals")]
)
def test_failed_look_up_fails_no_job_and_is_logged(bucket, error, engine, caplog):
    bucket.fail_with = error
    assert not is_stored(handle(build(bucket, engine)))
    assert caplog.records[0].message == "stored result not looked up"


def test_look_up_that_hangs_delays_no_job(engine, caplog):
    assert handle(build(MemoryBucket(seconds=600), engine, limit_s=1.5))["images"]
    (line,) = caplog.records  # a look-up that the job had waited for would be one more
    assert (line.message, line.error) == ("result not stored", "took too long")


def test_job_that_comes_again_waits_for_a_look_up_that_hangs_up_to_the_limit(caplog):
    bucket = MemoryBucket()
    worker = build(bucket, limit_s=0.1)
    handle(worker)
    bucket.seconds = 600
    reply = handle(worker)
    assert not is_stored(reply)
    assert 100 <= reply["timings_ms"]["total"] < 1_000
    assert caplog.records[0].error == "took too long"


def test_error_of_the_engine_is_the_reply():
    worker = build(MemoryBucket(seconds=600), FakeEngine(fail_with=OutOfMemory("full")))
    assert handle(worker)["error"] == "out_of_memory: full"


@pytest.mark.parametrize("error", [StorageUnavailable("down"), RuntimeError("internals")])
@pytest.mark.parametrize("key", [None, "order-7"])
def test_job_whose_result_cannot_be_written_succeeds(error, key, caplog):
    class ReadOnly(MemoryBucket):
        async def put_file(self, data, key):
            raise error

    assert handle(build(ReadOnly()), with_key(key=key))["images"]
    assert [each.message for each in caplog.records] == ["result not stored"]


def test_worker_that_is_closed_has_written_its_results():
    bucket = MemoryBucket()

    async def live():
        async with build(bucket) as worker:
            await worker.handle(JOB)

    asyncio.run(live())
    assert result_key(bucket)


# --- what has no result ---------------------------------------------------------------------


def test_job_with_another_delivery_is_neither_looked_up_nor_kept(caplog):
    bucket = MemoryBucket(fail_with=RuntimeError("not to be used"))
    job = make_job(output={"delivery": "inline", "fallback": False})
    assert handle(build(bucket), job)["images"]
    assert not caplog.records and not bucket.files


INLINE_JOB = make_job(num_images=2, output={"delivery": "inline"})


def test_inline_images_leave_no_result():
    bucket = MemoryBucket()
    assert all(image["data"] for image in handle(build(bucket), INLINE_JOB)["images"])
    assert not bucket.files


def test_inline_images_that_went_to_the_bucket_have_a_result():
    bucket, engine = MemoryBucket(), FakeEngine()
    worker = build(bucket, engine, max_reply_bytes=1_000)
    first, second = handle(worker, INLINE_JOB), handle(worker, INLINE_JOB)
    assert len(engine.requests) == 1
    assert images_without_links(first) == images_without_links(second)
    assert second["warnings"] == [*first["warnings"], ANSWERED_FROM_STORED]


def test_inline_images_that_the_platform_refuses_have_a_result():
    bucket, engine = MemoryBucket(), FakeEngine()
    worker = build(bucket, engine)

    async def refused():
        reply = await worker.handle(INLINE_JOB)
        smaller = await reply.shrink()
        await worker.settle()
        return smaller

    first, second = asyncio.run(refused()), handle(worker, INLINE_JOB)
    assert len(engine.requests) == 1
    assert images_without_links(first) == images_without_links(second)


def test_image_that_is_not_in_the_bucket_leaves_no_result():
    class Half(MemoryBucket):
        async def put(self, image, key, *, within_s):
            if image.index == 1:
                raise StorageUnavailable("down")
            return await super().put(image, key, within_s=within_s)

    bucket = Half()
    first, second = handle(build(bucket))["images"]
    assert ("url" in first, "data" in second) == (True, True)
    assert [key for key in bucket.files if key.endswith(".result")] == []


def test_cancelled_job_leaves_no_result_and_no_task():
    class Slow(MemoryBucket):
        async def put(self, image, key, *, within_s):
            await asyncio.sleep(600)
            return await super().put(image, key, within_s=within_s)

    async def cancel_after(seconds):
        bucket = Slow(seconds=0.03)
        task = asyncio.create_task(build(bucket, FakeEngine(seconds=0.06)).handle(JOB))
        await asyncio.sleep(seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return bucket.files, asyncio.all_tasks() - {asyncio.current_task()}

    for seconds in (0.0, 0.01, 0.04, 0.1):
        assert asyncio.run(cancel_after(seconds)) == ({}, set())


@pytest.fixture(autouse=True)
def warnings_only(caplog):
    caplog.set_level(logging.WARNING)


def test_fingerprint_depends_on_the_secret(bucket):
    other = MemoryBucket()
    handle(build(other, secret="other"))
    contents = [
        json.loads(each.files[result_key(each)].partition(b"\n")[2]) for each in (bucket, other)
    ]
    assert contents[0]["fingerprint"] != contents[1]["fingerprint"]
    assert contents[0]["images"] == contents[1]["images"]


def test_fingerprint_depends_on_how_texts_are_read():
    ways: list[dict[str, object]] = [
        {},
        {"clip_skip": 1},
        {"prompt_weights": True},
        {"on_long_prompt": "chunk"},
    ]
    jobs = [parse_job(make_job(**way), OFFER) for way in ways]
    assert len({fingerprint(job, SecretStr("secret")) for job in jobs}) == len(ways)
