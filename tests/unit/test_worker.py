"""One job through the worker with a FakeEngine: each delivery, each failure, no prompt in a log."""

import asyncio
import base64
import io
import json
import logging
from dataclasses import replace
from importlib import resources

import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from pydantic import SecretStr
from support.factories import OFFER, make_job

from pixpod import errors
from pixpod.contract.reply import TimingsReply
from pixpod.errors import (
    DeviceUnavailable,
    InvalidInput,
    InvalidSettings,
    OutOfMemory,
    PayloadError,
    Problem,
    StorageDenied,
    StorageUnavailable,
    WorkerError,
)
from pixpod.inputs.client import GuardedClient
from pixpod.inputs.intake import Intake
from pixpod.inputs.targets import Targets
from pixpod.job import Delivery, StoredImage
from pixpod.logs import JsonFormatter
from pixpod.outputs.encoding import MetadataOptions
from pixpod.outputs.storage import DirectoryImageStore, ImageStore, InlineImageStore
from pixpod.serving.concurrency import Concurrency
from pixpod.serving.delivery import ImageDelivery
from pixpod.serving.refresh import Refresh
from pixpod.serving.refusing_worker import RefusingWorker
from pixpod.serving.replies import json_bytes
from pixpod.serving.worker import Platform, Worker
from pixpod.testing.fake_engine import FakeEngine
from pixpod.testing.memory_bucket import MemoryBucket

PROMPT = "PLANTEDPROMPT on a blue background"
SCHEMA = Draft202012Validator(
    json.loads(
        resources.files("pixpod.contract").joinpath("schema/reply.json").read_text(encoding="utf-8")
    )
)


class FailingStore:
    """An ImageStore that takes the first images, then raises."""

    def __init__(self, fail_with, *, num_good=0):
        self.fail_with = fail_with
        self.num_good = num_good

    async def put(self, image, key, *, within_s):
        self.num_good -= 1
        if self.num_good < 0:
            raise self.fail_with
        return await InlineImageStore().put(image, key, within_s=within_s)


@pytest.fixture
def build(tmp_path):
    def build_worker(
        engine=None,
        *,
        stores=None,
        capabilities=OFFER,
        max_reply_bytes=10_000_000,
        callers=None,
        falls_back=False,
        max_job_s=60,
        refresh_after_images=0,
        concurrency=None,
        platform=None,
        **more,
    ):
        ours: dict[Delivery, ImageStore] = {
            Delivery.INLINE: InlineImageStore(),
            Delivery.DIRECTORY: DirectoryImageStore(tmp_path),
        }
        return Worker(
            capabilities=capabilities,
            engine=engine or FakeEngine(),
            delivery=ImageDelivery(
                stores=ours | (stores or {}),
                key_prefix="images",
                key_secret=SecretStr("hidden"),
                max_reply_bytes=max_reply_bytes,
                callers=callers,
                falls_back=falls_back,
            ),
            usd_per_gpu_second=0.5,
            concurrency=concurrency or concurrency_of(1),
            refresh=Refresh(after_images=refresh_after_images),
            intake=Intake(GuardedClient(Targets())),
            platform=platform,
            worker_id="pod-1",
            max_job_s=max_job_s,
            **more,
        )

    return build_worker


async def send_nothing(job_id, update):
    pass


def platform(*, send_progress=send_nothing, end_worker=lambda: None):
    return Platform(num_taken_jobs=lambda: 1, send_progress=send_progress, end_worker=end_worker)


def concurrency_of(num_jobs, *, num_taken=lambda: 1):
    return Concurrency(max_when_warm=num_jobs, is_warm=lambda: True, num_taken=num_taken)


@pytest.fixture
def log_lines():
    """All that is logged during a test, as the lines of a worker's log."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.removeHandler(handler)
    root.setLevel(level)


def handle(worker, job):
    reply = asyncio.run(worker.handle(job))
    SCHEMA.validate(json.loads(json.dumps(reply, allow_nan=False)))
    return reply


# --- success -------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_inline_image_is_in_the_reply(build, format):
    reply = handle(build(), make_job(seed=7, output={"format": format}))
    (image,) = reply["images"]
    data = base64.b64decode(image["data"], validate=True)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (image["width"], image["height"]) == (64, 64)
        assert picture.format == format.upper()
    assert len(data) == image["size_bytes"]
    assert image["content_type"] == f"image/{format}"
    assert image["seed"] == 7
    assert "key" not in image


def test_directory_has_the_images_under_their_keys(build, tmp_path):
    output = {"delivery": "directory", "key_prefix": "customers/42"}
    reply = handle(build(), make_job(num_images=2, output=output))
    for index, image in enumerate(reply["images"]):
        assert image["key"].startswith(f"images/customers/42/job-1/{index}-")
        assert image["path"] == str(tmp_path / image["key"])
        assert len((tmp_path / image["key"]).read_bytes()) == image["size_bytes"]


def test_reply_is_honest_about_what_ran(build):
    reply = handle(build(), make_job())
    assert reply["api_version"] == 1
    assert reply["model"] == {
        "name": "sdxl-tiny",
        "revision": "fake",
        "precision": "float32",
        "weights": "fake",
    }
    others = {
        "fetch",
        "onload",
        "adapt",
        "preprocess",
        "image_encode",
        "refine",
        "upscale",
        "safety",
    }
    phases = [phase for phase in TimingsReply.model_fields if phase not in others]
    assert list(reply["timings_ms"]) == phases, "those that ran, in order"
    assert reply["steps"] == OFFER.models["sdxl-tiny"].defaults.num_inference_steps
    assert reply["timings_ms"]["denoise"] == 2.0
    assert reply["timings_ms"]["total"] > 0
    assert reply["cost"]["gpu_ms"] == 6.0
    assert reply["cost"]["estimated_usd"] == 0.003
    assert reply["worker"]["id"] == "pod-1"


def test_images_are_in_the_order_of_their_seeds(build):
    worker = build()
    together = handle(worker, make_job(seed=[5, 0, 3]))["images"]
    alone = [handle(worker, make_job(seed=seed))["images"][0] for seed in (5, 0, 3)]
    assert [image["seed"] for image in together] == [5, 0, 3]
    assert [image["sha256"] for image in together] == [image["sha256"] for image in alone]


def test_retried_job_gives_the_same_images_under_the_same_keys(build):
    job = make_job(num_images=2, output={"delivery": "directory"})
    assert handle(build(), job)["images"] == handle(build(), job)["images"]


def test_only_the_first_reply_is_of_a_cold_start(build):
    worker = build()
    replies = [handle(worker, make_job(num_images=2)) for _ in range(3)]
    assert [reply["worker"]["cold_start"] for reply in replies] == [True, False, False]
    assert [reply["worker"]["images_served"] for reply in replies] == [2, 4, 6]


def test_failed_job_is_not_counted(build):
    engine = FakeEngine(fail_with=OutOfMemory("full"))
    worker = build(engine)
    handle(worker, make_job())
    engine.fail_with = None
    assert handle(worker, make_job())["worker"] | {"boot_ms": {}} == {
        "id": "pod-1",
        "cold_start": True,
        "boot_ms": {},
        "images_served": 1,
    }


def test_metadata_may_be_left_out_of_the_file(build):
    worker = build()
    with_it, without = (
        base64.b64decode(image["data"])
        for metadata in (True, False)
        for image in handle(worker, make_job(prompt=PROMPT, output={"metadata": metadata}))[
            "images"
        ]
    )
    assert b"PLANTEDPROMPT" in with_it
    assert b"PLANTEDPROMPT" not in without


def test_deployment_may_leave_prompts_out_of_files(build):
    worker = build(metadata=MetadataOptions(has_prompts=False))
    job = make_job(prompt=PROMPT, negative_prompt="PLANTEDPROMPT", guidance_scale=3)
    data = base64.b64decode(handle(worker, job)["images"][0]["data"])
    assert b"PLANTEDPROMPT" not in data
    assert b"Sampler" in data


@pytest.mark.parametrize("is_marked", [True, False])
def test_files_are_marked_as_generated_unless_the_deployment_says_no(build, is_marked):
    worker = build(metadata=MetadataOptions(has_ai_mark=is_marked))
    (image,) = handle(worker, make_job(output={"metadata": False}))["images"]
    assert (b"trainedAlgorithmicMedia" in base64.b64decode(image["data"])) is is_marked


def test_worker_starts_and_stops_its_engine(build):
    engine = FakeEngine()

    async def live():
        async with build(engine) as worker:
            assert engine.is_started
            await worker.handle(make_job())

    asyncio.run(live())
    assert not engine.is_started


def test_worker_serves_several_event_loops_one_after_another(build):
    worker = build()
    assert all("images" in handle(worker, make_job()) for _ in range(3))


# --- failure -------------------------------------------------------------------------------


def concrete_errors():
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, WorkerError) and hasattr(error, "code"):
            is_payload = issubclass(error, PayloadError)
            problem = Problem(field="prompt", value=None, accepted="shorter")
            yield error([problem]) if is_payload else error("as ordered")


@pytest.mark.parametrize("error", list(concrete_errors()), ids=lambda error: error.code)
def test_error_of_the_engine_is_the_reply(build, error):
    worker = build(FakeEngine(fail_with=error))
    expected = {"error": str(error)} | ({"refresh_worker": True} if error.refresh_worker else {})
    assert handle(worker, make_job()) == expected


def test_bad_payload_never_reaches_the_engine(build):
    engine = FakeEngine()
    reply = handle(build(engine), make_job(width="wide"))
    assert reply["error"].startswith("invalid_input: ")
    assert engine.requests == []


def test_unforeseen_error_is_in_the_log_only(build, log_lines):
    worker = build(FakeEngine(fail_with=RuntimeError("internals")))
    reply = handle(worker, make_job())
    assert reply == {"error": "internal_error: the worker's log has the details"}
    (line,) = (line for line in log_lines() if line["level"] == "ERROR")
    assert "RuntimeError: internals" in line["traceback"]
    assert line["job_id"] == "job-1"


@pytest.mark.parametrize("num_good", [0, 1])
@pytest.mark.parametrize("error", [StorageDenied("no"), StorageUnavailable("later")])
def test_error_of_a_store_is_the_reply(build, error, num_good):
    worker = build(stores={Delivery.INLINE: FailingStore(error, num_good=num_good)})
    assert handle(worker, make_job(num_images=2)) == {"error": str(error)}


def test_worker_lives_on_after_a_failure(build):
    engine = FakeEngine(fail_with=RuntimeError("internals"))
    worker = build(engine)
    handle(worker, make_job())
    engine.fail_with = None
    assert "images" in handle(worker, make_job())


def test_reply_that_cannot_fit_is_refused_before_anything_is_generated(build):
    engine = FakeEngine()
    reply = handle(build(engine, max_reply_bytes=60_000), make_job(num_images=4))
    assert reply["error"].startswith("result_too_large: 4 inline png images of 64x64 may take ")
    assert engine.requests == []


def test_large_images_go_to_a_directory_all_the_same(build):
    job = make_job(num_images=4, output={"delivery": "directory"})
    assert "images" in handle(build(max_reply_bytes=1_000), job)


def test_largest_inline_reply_fits_what_was_foreseen(build):
    job = make_job(num_images=1, output={"format": "jpeg"})
    for limit in range(50_000, 90_000, 2_000):
        reply = handle(build(max_reply_bytes=limit), job)
        assert "error" in reply or len(json.dumps(reply)) <= limit


def test_cancelled_job_is_gone_and_the_next_is_served(build):
    engine = FakeEngine(seconds=30)
    worker = build(engine)

    async def cancel_one():
        task = asyncio.create_task(worker.handle(make_job()))
        while not engine.requests:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        engine.seconds = 0
        return await worker.handle(make_job())

    assert asyncio.run(cancel_one())["worker"]["cold_start"]


# --- limits --------------------------------------------------------------------------------


def test_job_that_takes_too_long_says_how_far_it_got_and_the_next_is_served(build):
    engine = FakeEngine(seconds=600)
    worker = build(engine, max_job_s=0.05)
    error = handle(worker, make_job(num_inference_steps=50))["error"]
    assert error.startswith("deadline_exceeded: not begun after 0.05 s")
    engine.seconds = 0
    assert "images" in handle(worker, make_job())


def test_deadline_names_the_step_that_was_done(build):
    class Slow(FakeEngine):
        async def generate(self, request, on_step=None):
            on_step(3, 12)
            await asyncio.sleep(600)

    error = handle(build(Slow(), max_job_s=0.05), make_job())["error"]
    assert error.startswith("deadline_exceeded: stopped after 0.05 s at step 3 of 12: request")


def test_platforms_own_limit_for_a_job_is_kept(build):
    job = make_job() | {"policy": {"executionTimeout": 100, "ttl": 1000}}
    error = handle(build(FakeEngine(seconds=600)), job)["error"]
    assert error.startswith("deadline_exceeded: not begun after 0.05 s")


def test_engine_draws_the_next_job_while_images_of_the_first_are_uploaded(build):
    class StuckStore:
        async def put(self, image, key, *, within_s):
            is_uploading.set()
            await may_go_on.wait()
            return await InlineImageStore().put(image, key, within_s=within_s)

    is_uploading, may_go_on = asyncio.Event(), asyncio.Event()
    engine = FakeEngine()
    worker = build(engine, stores={Delivery.DIRECTORY: StuckStore()})

    async def overlap():
        stuck = asyncio.create_task(worker.handle(make_job(output={"delivery": "directory"})))
        await is_uploading.wait()
        second = await worker.handle(make_job())
        is_first_done = stuck.done()
        may_go_on.set()
        return second, is_first_done, await stuck

    second, is_first_done, first = asyncio.run(overlap())
    assert "images" in second and "images" in first
    assert not is_first_done
    assert len(engine.requests) == 2


def test_updates_of_a_job_are_sent_and_none_after_its_reply(build):
    updates = []

    async def note(job_id, update):
        updates.append((job_id, update))

    class Stepping(FakeEngine):
        """Waits in its second step until that is told."""

        async def generate(self, request, on_step=None):
            on_step(1, 4)
            while not updates:
                await asyncio.sleep(0.01)
            return await super().generate(request, on_step)

    worker = build(Stepping(), platform=platform(send_progress=note))
    assert "images" in handle(worker, make_job(num_inference_steps=4))
    assert [(job_id, update["step"]) for job_id, update in updates] == [("job-1", 1)]


# --- replies that the platform refuses ------------------------------------------------------


class LinkStore:
    """An ImageStore that gives links."""

    async def put(self, image, key, *, within_s):
        return StoredImage(image=image, key=key, url=f"https://bucket.example/{key}")


def shrink(worker, **given):
    """The reply to a job, and the one that follows it if the platform refuses it."""

    async def both():
        reply = await worker.handle(make_job(**given))
        return reply, await reply.shrink()

    reply, smaller = asyncio.run(both())
    SCHEMA.validate(json.loads(json.dumps(smaller, allow_nan=False)))
    return reply, smaller


def test_refused_inline_images_go_to_the_bucket(build):
    worker = build(stores={Delivery.S3: LinkStore()}, falls_back=True)
    reply, smaller = shrink(worker, num_images=2, output={"delivery": "inline"})
    for inline, linked in zip(reply["images"], smaller["images"], strict=True):
        assert linked["url"] == f"https://bucket.example/{linked['key']}"
        added = {name: linked[name] for name in ("url", "key")}
        assert linked == {n: v for n, v in inline.items() if n != "data"} | added
    (warning,) = smaller["warnings"]
    assert warning.endswith("the reply is too large, so images are in the deployment's bucket")
    changed = {"images", "warnings"}
    assert {n: v for n, v in reply.items() if n not in changed} == {
        n: v for n, v in smaller.items() if n not in changed
    }


@pytest.mark.parametrize(
    "stores", [{}, {Delivery.S3: FailingStore(StorageUnavailable("down"), num_good=1)}]
)
def test_refused_inline_images_that_cannot_be_stored_are_an_error(build, stores):
    _, smaller = shrink(build(stores=stores, falls_back=True), num_images=2)
    assert smaller["error"].startswith("result_too_large: a reply cannot hold 2 inline images")


def test_reply_without_inline_images_has_no_smaller_form(build):
    assert type(handle(build(), make_job(output={"delivery": "directory"}))) is dict


# --- refresh and end ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "ends"), [(DeviceUnavailable("broken"), True), (OutOfMemory("full"), False)]
)
def test_worker_whose_gpu_is_broken_ends(build, error, ends):
    ended: list[None] = []
    worker = build(
        FakeEngine(fail_with=error), platform=platform(end_worker=lambda: ended.append(None))
    )
    handle(worker, make_job())
    assert bool(ended) == ends


def test_worker_asks_for_a_refresh_once_enough_images_were_served(build):
    worker = build(refresh_after_images=5)
    replies = [handle(worker, make_job(num_images=2)) for _ in range(4)]
    assert [reply.get("refresh_worker") for reply in replies] == [None, None, True, True]
    assert all(len(reply["images"]) == 2 for reply in replies)


def test_worker_with_other_jobs_asks_for_a_refresh_with_the_last_of_them(build):
    num_taken = 2
    concurrency = concurrency_of(2, num_taken=lambda: num_taken)
    concurrency(1)
    worker = build(FakeEngine(fail_with=OutOfMemory("full"), seconds=0.05), concurrency=concurrency)

    async def both():
        nonlocal num_taken
        first = asyncio.create_task(worker.handle(make_job(num_inference_steps=1)))
        second = asyncio.create_task(worker.handle(make_job(num_inference_steps=5)))
        replies = [await first]
        is_open = concurrency(2) == 2
        num_taken = 1
        return [*replies, await second], is_open

    replies, is_open = asyncio.run(both())
    assert replies == [
        {"error": "out_of_memory: full"},
        {"error": "out_of_memory: full", "refresh_worker": True},
    ]
    assert not is_open, "it must take no more"


def test_refresh_is_logged_with_its_reason(build, log_lines):
    handle(build(refresh_after_images=1), make_job())
    (line,) = (line for line in log_lines() if line["message"] == "worker requests a refresh")
    assert line["reason"] == "1 images were served"


# --- a deployment that is set up wrongly -----------------------------------------------------


@pytest.mark.parametrize("error", [InvalidSettings("PIXPOD_DEVICE='gpu'"), OutOfMemory("full")])
def test_refusing_worker_answers_each_job_with_the_fault(error, log_lines):
    refuse = RefusingWorker(error).handle

    async def ask():
        return await refuse(make_job())

    for _ in range(2):
        reply = asyncio.run(ask())
        SCHEMA.validate(reply)
        assert reply["error"] == str(error)
    assert [line["job_id"] for line in log_lines() if line["level"] == "ERROR"] == ["job-1"] * 2


# --- logs ----------------------------------------------------------------------------------


def test_overlapping_jobs_are_distinct_in_the_log(build, log_lines):
    worker = build(FakeEngine(seconds=0.01))

    async def both():
        jobs = ({**make_job(), "id": name} for name in ("left", "right"))
        return await asyncio.gather(*(worker.handle(job) for job in jobs))

    replies = asyncio.run(both())
    assert sorted(reply["worker"]["cold_start"] for reply in replies) == [False, True]
    ours = [line for line in log_lines() if line["logger"] == "pixpod.serving.worker"]
    for name in ("left", "right"):
        messages = [line["message"] for line in ours if line["job_id"] == name]
        assert messages == ["job started", "job done"]


@pytest.mark.parametrize(
    ("fail_with", "input"),
    [
        (None, {}),
        (None, {"width": "wide", "text": PROMPT}),
        (None, {"negative_prompt": PROMPT, "guidance_scale": 1}),
        (InvalidInput([Problem(field="prompt", value="90 tokens", accepted="77")]), {}),
        (OutOfMemory("full"), {}),
        (RuntimeError("internals"), {}),
    ],
)
def test_prompt_is_in_no_log(build, log_lines, fail_with, input):
    worker = build(FakeEngine(fail_with=fail_with))
    handle(worker, make_job(**{"prompt": PROMPT, "prompt_2": PROMPT} | input))
    assert log_lines()
    assert "PLANTEDPROMPT" not in json.dumps(log_lines())


def test_secret_of_the_keys_is_in_no_log_and_no_reply(build, log_lines):
    reply = handle(build(), make_job(output={"delivery": "directory"}))
    assert "hidden" not in json.dumps([reply, log_lines()])


@pytest.mark.parametrize("delivery", [Delivery.INLINE, Delivery.DIRECTORY])
def test_length_of_a_reply_is_that_of_its_json(build, delivery):
    reply = handle(build(), make_job(num_images=2, output={"delivery": delivery}))
    reply["warnings"].append("ä \ud800")
    assert json_bytes(reply) == len(json.dumps(reply))


class TestReplyThatIsTooLarge:
    """4 inline images of 64x64 as JPEG: predicted at 226 kB, in truth below 20 kB."""

    JOB = make_job(num_images=4, output={"format": "jpeg", "delivery": "inline"})

    def build(self, build, num_bytes, **more):
        with_s3 = replace(OFFER, deliveries=(Delivery.S3, Delivery.INLINE))
        return build(
            stores={Delivery.S3: MemoryBucket()},
            capabilities=with_s3,
            max_reply_bytes=num_bytes,
            **more,
        )

    def test_images_go_to_the_bucket(self, build):
        reply = handle(self.build(build, 5_000, falls_back=True), self.JOB)
        links = [image["url"][:21] for image in reply["images"]]
        assert links == [f"memory:images/job-1/{index}" for index in range(4)]
        assert reply["warnings"] == [
            "output: the reply is too large, so images are in the deployment's bucket"
        ]

    def test_reply_that_fits_stays_inline_whatever_was_predicted(self, build):
        reply = handle(self.build(build, 50_000, falls_back=True), self.JOB)
        assert all("data" in image for image in reply["images"])
        assert reply["warnings"] == []

    @pytest.mark.parametrize(("falls_back", "output"), [(False, {}), (True, {"fallback": False})])
    def test_it_is_refused_before_the_gpu_works_without_fallback(self, build, falls_back, output):
        job = make_job(num_images=4, output=self.JOB["input"]["output"] | output)
        engine = FakeEngine(fail_with=OutOfMemory("not reached"))
        worker = self.build(build, 50_000, falls_back=falls_back, engine=engine)
        assert handle(worker, job)["error"].startswith("result_too_large: 4 inline")
