"""Jobs whose images no place takes, and the same jobs when they come again."""

import asyncio
import json
import logging
import threading
from dataclasses import replace

import pytest
from pydantic import SecretStr
from support.factories import OFFER, make_controlled_job, make_job, make_settings

from pixpod.bootstrap import build_worker, spool_directory
from pixpod.errors import InvalidSettings, Problem, PutRefused, StorageDenied, StorageUnavailable
from pixpod.inputs.client import GuardedClient
from pixpod.inputs.intake import Intake
from pixpod.inputs.targets import Targets
from pixpod.job import Delivery
from pixpod.outputs.spool import Spool
from pixpod.outputs.storage import InlineImageStore
from pixpod.serving.concurrency import Concurrency
from pixpod.serving.delivery import ImageDelivery
from pixpod.serving.job_results import FROM_SPOOL
from pixpod.serving.refresh import Refresh
from pixpod.serving.replies import BulkyReply
from pixpod.serving.spooling import Spooling
from pixpod.serving.stored_results import StoredResults
from pixpod.serving.worker import Worker
from pixpod.testing.fake_engine import FakeEngine
from pixpod.testing.memory_bucket import MemoryBucket

SECRET = SecretStr("hidden")
JOB = make_job(num_images=2, output={"name": "poster", "key_prefix": "shop"})
CONTROLLED = make_controlled_job(num_images=2)
DOWN = StorageUnavailable("bucket 'images': SlowDown (HTTP 503)")
REFUSED = PutRefused([Problem(field="s3Config", value="host: 403", accepted="a place")])
S3_CONFIG = {
    "endpointUrl": "https://s3.eu-west-3.amazonaws.com",
    "bucketName": "mine",
    "accessId": "planted-id",
    "accessSecret": "planted-secret",
}


class Bucket(MemoryBucket):
    """A MemoryBucket that takes no image as long as `error` is set."""

    error: Exception | None = None

    async def put(self, image, key, *, within_s):
        if self.error:
            raise self.error
        return await super().put(image, key, within_s=within_s)


class Places(Bucket):
    """CallerPlaces with one store for all jobs."""

    def open(self, job):
        return self

    async def check(self, job):
        pass

    def close(self):
        pass


@pytest.fixture
def bucket():
    bucket = Bucket()
    bucket.error = DOWN
    return bucket


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool", secret=SECRET, max_bytes=1_000_000)


@pytest.fixture(autouse=True)
def warnings_only(caplog):
    caplog.set_level(logging.WARNING)


def build(bucket, spool, *, places=None, max_reply_bytes=1_000, limits=None):
    return Worker(
        capabilities=replace(OFFER, deliveries=(Delivery.S3, Delivery.INLINE)),
        engine=FakeEngine(),
        delivery=ImageDelivery(
            stores={Delivery.S3: bucket, Delivery.INLINE: InlineImageStore()},
            key_prefix="live",
            key_secret=SECRET,
            max_reply_bytes=max_reply_bytes,
            callers=places or Places(),
            spool=Spooling(spool=spool, secret=SECRET, **(limits or {})),
        ),
        usd_per_gpu_second=0.5,
        concurrency=Concurrency(max_when_warm=1, is_warm=lambda: True, num_taken=lambda: 1),
        refresh=Refresh(after_images=0),
        intake=Intake(GuardedClient(Targets())),
        platform=None,
        worker_id="pod-1",
        max_job_s=60,
        results=StoredResults(store=bucket, secret=SECRET),
    )


def handle(worker, job=JOB):
    async def run():
        reply = await worker.handle(job)
        await worker.results.settle()
        return reply

    return asyncio.run(run())


def digests_in(spool):
    return sorted(path.stem.partition("-")[2] for path in spool.folder.glob("*/*.png"))


def digests_of(reply):
    return sorted(image["sha256"] for image in reply["images"])


def num_generated(worker):
    return len(worker.engine.requests)


# --- the job fails, and comes again ---------------------------------------------------------


def test_job_that_comes_again_is_delivered_without_being_generated(bucket, spool):
    first = build(bucket, spool)
    error = handle(first)["error"]
    assert error.startswith("storage_unavailable: bucket 'images': SlowDown (HTTP 503); the images")
    assert "/retry" in error and "idempotency_key" in error
    digests = digests_in(spool)
    assert len(digests) == 2

    bucket.error = None
    second = build(bucket, spool)
    reply = handle(second)
    assert digests_of(reply) == digests
    assert num_generated(second) == 0
    assert reply["cost"]["gpu_ms"] == 0
    assert reply["steps"] == first.engine.requests[0].sampling.num_inference_steps
    assert reply["warnings"] == [FROM_SPOOL]
    assert list(reply["timings_ms"]) == ["upload", "total"]
    assert all(image["key"].startswith("live/shop/job-1/poster-") for image in reply["images"])
    assert spool.folders() == []

    again = handle(build(bucket, spool))
    assert digests_of(again) == digests, "its result is stored like that of any job"
    assert "stored result" in again["warnings"][0]


def test_control_images_are_in_the_spool_with_the_images(bucket, spool):
    assert "spool" in handle(build(bucket, spool), CONTROLLED)["error"]
    assert len(digests_in(spool)) == 3
    bucket.error = None
    reply = handle(build(bucket, spool), CONTROLLED)
    assert reply["warnings"] == [FROM_SPOOL]
    assert [len(reply[name]) for name in ("images", "controls")] == [2, 1]


def test_job_that_fails_again_keeps_its_images(bucket, spool):
    for _ in range(3):
        worker = build(bucket, spool)
        assert "spool" in handle(worker)["error"]
    assert num_generated(worker) == 0
    assert len(spool.folders()) == 1


def test_other_job_and_other_request_are_generated(bucket, spool):
    handle(build(bucket, spool))
    for job in ({**JOB, "id": "job-2"}, make_job(seed=3), make_job(output={"format": "webp"})):
        worker = build(bucket, spool)
        handle(worker, job)
        assert num_generated(worker) == 1
    assert len(spool.folders()) == 4


def test_new_job_with_the_same_idempotency_key_is_delivered(bucket, spool):
    job = make_job(idempotency_key="order-7")
    handle(build(bucket, spool), job)
    bucket.error = None
    worker = build(bucket, spool)
    assert handle(worker, {**job, "id": "job-2"})["warnings"] == [FROM_SPOOL]
    assert num_generated(worker) == 0


def test_job_that_comes_again_without_its_s3_config_goes_to_the_deployments_bucket(bucket, spool):
    places = Places()
    places.error = REFUSED
    error = handle(build(bucket, spool, places=places), JOB | {"s3Config": S3_CONFIG})["error"]
    (problem,) = json.loads(error.removeprefix("put_refused: "))["problems"]
    assert "/retry" in problem["hint"]

    bucket.error = None
    worker = build(bucket, spool)
    reply = handle(worker)
    assert reply["images"][0]["key"].startswith("live/")
    assert num_generated(worker) == 0


def test_place_of_the_job_is_tried_again(bucket, spool):
    places = Places()
    places.error = REFUSED
    job = JOB | {"s3Config": S3_CONFIG}
    handle(build(bucket, spool, places=places), job)
    places.error = None
    reply = handle(build(bucket, spool, places=places), job)
    assert len(reply["images"]) == len(places.files) == 2
    assert (reply["warnings"], spool.folders()) == ([FROM_SPOOL], [])


def test_images_of_which_one_is_delivered_are_all_in_the_spool(bucket, spool):
    class Half(MemoryBucket):
        async def put(self, image, key, *, within_s):
            if image.index == 1:
                raise DOWN
            return await super().put(image, key, within_s=within_s)

    assert "error" in handle(build(Half(), spool))
    assert len(digests_in(spool)) == 2


def test_image_that_fits_into_the_reply_is_not_spooled(bucket, spool):
    reply = handle(build(bucket, spool, max_reply_bytes=1_000_000))
    assert reply["images"][0]["data"]
    assert spool.folders() == []


def test_spool_has_no_prompt_no_url_and_no_credentials(bucket, spool):
    places = Places()
    places.error = REFUSED
    job = make_job() | {"s3Config": S3_CONFIG}
    handle(build(bucket, spool, places=places), job)
    (folder,) = spool.folders()
    text = (folder / "job.sealed").read_text(encoding="utf-8")
    for word in ("red circle", "http", "planted", "mine", "hidden"):
        assert word not in text


# --- the spool does not work ----------------------------------------------------------------


def test_full_spool_has_a_code_that_says_what_to_do(bucket, tmp_path):
    spool = Spool(tmp_path / "spool", secret=SECRET, max_bytes=100)
    error = handle(build(bucket, spool))["error"]
    assert error.startswith("spool_full: storage_unavailable, and the spool has 0 of at most 100")
    assert "scripts/upload_spool" in error
    assert spool.folders() == []


def test_spool_that_fails_leaves_the_error_of_the_place(bucket, tmp_path, caplog):
    (tmp_path / "spool").touch()
    spool = Spool(tmp_path / "spool", secret=SECRET, max_bytes=1_000_000)
    assert handle(build(bucket, spool))["error"] == str(DOWN)
    messages = [each.message for each in caplog.records]
    assert messages[0] == "spooled images are not used"
    assert "images not spooled, they are lost" in messages


def test_damaged_images_are_generated_again(bucket, spool, caplog):
    handle(build(bucket, spool))
    next(spool.folder.glob("*/*.png")).write_bytes(b"another picture")
    bucket.error = None
    caplog.clear()
    worker = build(bucket, spool)
    assert handle(worker)["warnings"] == []
    assert num_generated(worker) == 1
    assert [each.message for each in caplog.records] == ["spooled images are not used"]


class Hanging(Spool):
    """A disk on which nothing returns until `end` is set."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.end = threading.Event()

    def find(self, token):
        self.end.wait(60)
        return super().find(token)

    def keep(self, job, images, *, is_abandoned=lambda: False):
        self.end.wait(60)
        super().keep(job, images, is_abandoned=is_abandoned)


@pytest.fixture
def hanging(tmp_path):
    spool = Hanging(tmp_path / "spool", secret=SECRET, max_bytes=1_000_000)
    yield spool
    spool.end.set()


def test_disk_that_hangs_fails_no_job_and_takes_no_longer_than_allowed(bucket, hanging, caplog):
    worker = build(bucket, hanging, limits={"find_s": 0.1, "keep_s": 0.1})
    assert handle(worker)["error"] == str(DOWN)
    bucket.error = None
    assert handle(worker)["images"]
    assert [each.error for each in caplog.records if "spool" in each.message] == [
        "took too long"
    ] * 3
    hanging.end.set()
    worker.delivery.spool._threads.shutdown()
    assert hanging.folders() == [], "what the threads had begun is abandoned"


def test_cancelled_job_leaves_nothing(bucket, hanging):
    async def cancel():
        worker = build(bucket, hanging, limits={"find_s": 0.05})
        task = asyncio.create_task(worker.handle(JOB))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        hanging.end.set()
        worker.delivery.spool._threads.shutdown()

    asyncio.run(cancel())
    assert hanging.folders() == []


# --- replies that are too large -------------------------------------------------------------


def too_large(bucket, spool):
    return build(bucket, spool), make_job(num_images=2, output={"delivery": "inline"})


def test_inline_images_that_fit_nowhere_are_in_the_spool(bucket, spool):
    worker, job = too_large(bucket, spool)
    error = handle(worker, job)["error"]
    assert error.startswith("result_too_large: ") and "spool" in error
    digests = digests_in(spool)
    bucket.error = None
    worker, job = too_large(bucket, spool)
    reply = handle(worker, job)
    assert digests_of(reply) == digests
    assert (num_generated(worker), spool.folders()) == (0, [])


def test_images_of_a_reply_that_the_platform_refuses_are_in_the_spool(bucket, spool):
    worker = build(bucket, spool, max_reply_bytes=1_000_000)

    async def refuse():
        reply = await worker.handle(make_job(output={"delivery": "inline"}))
        assert isinstance(reply, BulkyReply)
        return await reply.shrink()

    assert "spool" in asyncio.run(refuse())["error"]
    assert len(digests_in(spool)) == 1


def test_inline_images_of_a_job_that_keeps_out_of_the_bucket_are_not_spooled(bucket, spool):
    """Its size is refused before the GPU works."""
    job = make_job(output={"delivery": "inline", "fallback": False})
    worker = build(bucket, spool)
    assert handle(worker, job)["error"].startswith("result_too_large: ")
    assert (num_generated(worker), spool.folders()) == (0, [])


# --- settings -------------------------------------------------------------------------------


def test_spool_needs_a_secret(tmp_path):
    with pytest.raises(InvalidSettings, match="PIXPOD_KEY_SECRET"):
        make_settings(PIXPOD_SPOOL_DIR=str(tmp_path))
    settings = make_settings(PIXPOD_SPOOL_DIR=str(tmp_path), PIXPOD_KEY_SECRET="hidden")
    assert spool_directory(settings) == tmp_path


def test_spool_is_on_the_network_volume_unless_it_is_the_platforms_cache(tmp_path):
    class Mounted(type(tmp_path)):  # type: ignore[misc]  # the class depends on the system
        def is_mount(self):
            return True

    settings, volume = make_settings(), Mounted(tmp_path)
    assert spool_directory(settings, tmp_path) is None
    assert spool_directory(settings, volume) == tmp_path / "pixpod-spool"
    (tmp_path / "huggingface-cache").mkdir()
    assert spool_directory(settings, volume) is None


@pytest.mark.parametrize(
    ("changes", "is_there"),
    [
        ({}, True),
        ({"PIXPOD_SPOOL_MAX_BYTES": "0"}, False),
        ({"PIXPOD_DELIVERY_FALLBACK": "none"}, False),
        ({"PIXPOD_SPOOL_DIR": ""}, False),
    ],
)
def test_deployment_can_turn_it_off(tmp_path, changes, is_there):
    environ = {"PIXPOD_SPOOL_DIR": str(tmp_path), "PIXPOD_KEY_SECRET": "hidden"}
    worker = build_worker(make_settings(**environ | changes))
    assert (worker.delivery.spool is not None) == is_there


@pytest.mark.parametrize("error", [StorageDenied("no"), DOWN])
def test_warning_in_the_log_names_no_path(bucket, spool, caplog, error):
    bucket.error = error
    handle(build(bucket, spool))
    (line,) = (each for each in caplog.records if each.message == "images are in the spool")
    assert line.num_images == 2
    assert str(spool.folder) not in caplog.text
