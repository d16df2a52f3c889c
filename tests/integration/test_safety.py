"""Unsafe images are flagged, blurred or dropped: exactly these, and from no place do they come."""

import asyncio
import base64
import io
import json
import statistics
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr
from support.factories import OFFER, make_job, make_settings
from support.planted_classifier import planted_classifier, score_of

from pixpod.bootstrap import build_worker
from pixpod.contract.payload import parse_job
from pixpod.errors import ModelUnavailable, StorageUnavailable, WeightsUnreadable
from pixpod.inputs.client import GuardedClient
from pixpod.inputs.intake import Intake
from pixpod.inputs.targets import Targets
from pixpod.job import (
    Delivery,
    Generation,
    ImageResult,
    ModelIdentity,
    RawImage,
    SafetyAction,
    WebhookEvent,
)
from pixpod.outputs.blurring import blur
from pixpod.outputs.encoding import MetadataOptions
from pixpod.outputs.nsfw_model import load_onnx_classifier
from pixpod.outputs.spool import Spool
from pixpod.outputs.storage import InlineImageStore
from pixpod.serving.concurrency import Concurrency
from pixpod.serving.delivery import ImageDelivery
from pixpod.serving.encoding import encode_images
from pixpod.serving.messages import make_message
from pixpod.serving.refresh import Refresh
from pixpod.serving.safety import Safety
from pixpod.serving.spooling import Spooling
from pixpod.serving.stored_results import StoredResults
from pixpod.serving.worker import Worker
from pixpod.testing.fake_engine import FakeEngine, colour_of
from pixpod.testing.memory_bucket import MemoryBucket
from pixpod.timeline import Timeline

SECRET = SecretStr("hidden")
PROMPT = "a red circle on a blue background"
ACTIONS = tuple(SafetyAction)


def scores_of(seeds, prompt=PROMPT):
    return [score_of(*colour_of(prompt, seed)) for seed in seeds]


SEEDS = tuple(seed for seed in range(100) if not 0.7 < scores_of([seed])[0] < 0.9)[:8]
UNSAFE = [score >= 0.8 for score in scores_of(SEEDS)]


class CountingClassifier:
    """Notes the size of each batch."""

    def __init__(self, inner):
        self.inner = inner
        self.batches = []

    def prepare(self, image):
        return self.inner.prepare(image)

    def scores(self, prepared):
        self.batches.append(len(prepared))
        return self.inner.scores(prepared)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return planted_classifier(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def build(classifier):
    def build_worker(
        action=None,
        *,
        load=lambda: classifier,
        bucket=None,
        spool=None,
        engine=None,
        max_reply_bytes=10_000_000,
    ):
        stores = {Delivery.INLINE: InlineImageStore()} | ({Delivery.S3: bucket} if bucket else {})
        offered = (Delivery.S3, Delivery.INLINE) if bucket else (Delivery.INLINE,)
        return Worker(
            capabilities=replace(OFFER, deliveries=offered, safety=action),
            engine=engine or FakeEngine(),
            delivery=ImageDelivery(
                stores=stores,
                key_prefix="live",
                key_secret=SECRET,
                max_reply_bytes=max_reply_bytes,
                spool=Spooling(spool=spool, secret=SECRET) if spool else None,
            ),
            usd_per_gpu_second=0.5,
            concurrency=Concurrency(max_when_warm=8, is_warm=lambda: True, num_taken=lambda: 1),
            refresh=Refresh(after_images=0),
            intake=Intake(GuardedClient(Targets())),
            platform=None,
            worker_id="pod-1",
            max_job_s=60,
            results=StoredResults(store=bucket, secret=SECRET) if bucket else None,
            safety=Safety(load=load),
        )

    return build_worker


def run(worker, *jobs):
    async def run_all():
        async with worker:
            return await asyncio.gather(*map(worker.handle, jobs))

    return asyncio.run(run_all())


def job_of(*seeds, **input):
    return make_job(seed=list(seeds), num_images=len(seeds), **input)


def without_links(reply):
    return [image | {"url": ""} if "url" in image else image for image in reply["images"]]


SPOT = bytes((0, 0, 0, 255, 255, 255))


def spotted(image):
    pixels = SPOT + image.pixels.pixels[len(SPOT) :]
    return replace(image, pixels=replace(image.pixels, pixels=pixels))


class SpottedEngine(FakeEngine):
    """Each image has a spot, too small to change its score, that no blurred image shows."""

    async def generate(self, request, on_step=None):
        found = await super().generate(request, on_step)
        return replace(found, images=tuple(map(spotted, found.images)))


def test_seeds_have_both_kinds():
    assert 2 <= sum(UNSAFE) <= 6


def test_scores_are_those_that_were_planted(build):
    (reply,) = run(build("flag"), job_of(*SEEDS))
    assert [image["nsfw"] for image in reply["images"]] == UNSAFE
    found = [image["nsfw_score"] for image in reply["images"]]
    assert found == pytest.approx(scores_of(SEEDS), abs=0.02)
    assert reply["warnings"] == []
    assert reply["timings_ms"]["safety"] > 0


@pytest.mark.parametrize("action", ACTIONS)
def test_exactly_the_unsafe_images_of_different_jobs_are_treated(build, action, classifier):
    counting = CountingClassifier(classifier)
    jobs = [job_of(seed) for seed in SEEDS]
    worker = build(action, load=lambda: counting, engine=SpottedEngine())
    replies = run(worker, *jobs)
    plain = run(build(engine=SpottedEngine()), *jobs)
    assert sum(counting.batches) == 8 and len(counting.batches) <= 4
    for reply, other, is_unsafe in zip(replies, plain, UNSAFE, strict=True):
        (image,), (before,) = reply["images"], other["images"]
        assert "nsfw" not in before
        assert image["nsfw"] is is_unsafe
        assert (image["seed"], image["width"]) == (before["seed"], before["width"])
        is_same = image.get("sha256") == before["sha256"]
        assert is_same is (not is_unsafe or action is SafetyAction.FLAG)
        assert ("data" in image) is not (is_unsafe and action is SafetyAction.DROP)
        has_warning = any(each.startswith("safety: images[0]") for each in reply["warnings"])
        assert has_warning is (is_unsafe and action is not SafetyAction.FLAG)


def test_dropped_image_is_in_its_place_with_its_seed_and_nothing_else(build):
    (reply,) = run(build("drop"), job_of(*SEEDS))
    assert [image["seed"] for image in reply["images"]] == list(SEEDS)
    for image, is_unsafe in zip(reply["images"], UNSAFE, strict=True):
        assert ("data" in image) is not is_unsafe
        if is_unsafe:
            assert image.keys() == {"seed", "width", "height", "nsfw", "nsfw_score"}
    assert reply["worker"]["images_served"] == 8


def test_blurred_image_shows_nothing():
    rng = np.random.default_rng(0)
    half = np.kron(rng.integers(0, 2, (32, 24), np.uint8), np.ones((8, 8), np.uint8)) * 255
    pixels = np.repeat(half[:, :, None], 3, axis=2)
    raw = RawImage(width=192, height=256, pixels=pixels.tobytes())
    after = blur(raw)
    found = np.frombuffer(after.pixels, np.uint8).reshape(pixels.shape).astype(float)
    assert (after.width, after.height) == (192, 256)
    steps = np.abs(np.diff(found, axis=0)).max(), np.abs(np.diff(found, axis=1)).max()
    assert max(steps) < 32, "no edge is left"
    assert np.abs(found.mean() - pixels.mean()) < 4


# --- who chooses ---------------------------------------------------------------------------------


def test_job_may_ask_for_flags_where_the_deployment_has_none(build):
    (reply,) = run(build(), job_of(*SEEDS, safety=True))
    assert [image["nsfw"] for image in reply["images"]] == UNSAFE
    assert all("data" in image for image in reply["images"])


def test_job_does_not_get_less_than_the_deployment_says(build):
    asked, refused = run(build("drop"), job_of(*SEEDS, safety=True), make_job(safety=False))
    assert ["data" in image for image in asked["images"]] == [not each for each in UNSAFE]
    (problem,) = json.loads(refused["error"].removeprefix("invalid_input: "))["problems"]
    assert (problem["field"], problem["value"]) == ("safety", False)
    (accepted,) = run(build(), make_job(safety=False))
    assert "nsfw" not in accepted["images"][0]


# --- nothing that was dropped comes from anywhere ------------------------------------------------


def test_dropped_image_is_in_no_bucket_and_in_no_stored_result(build):
    bucket = MemoryBucket()
    job = job_of(*SEEDS)
    (first,) = run(build("drop", bucket=bucket), job)
    kept = len(SEEDS) - sum(UNSAFE)
    assert sum(key.endswith(".png") for key in bucket.files) == kept
    worker = build("drop", bucket=bucket)
    (again,) = run(worker, job)
    assert "stored result" in again["warnings"][-1]
    assert without_links(again) == without_links(first)
    assert again["warnings"][:-1] == first["warnings"]
    at = datetime(2026, 11, 30, tzinfo=UTC)
    for reply in (first, again):
        message = make_message("job-1", WebhookEvent.COMPLETED, reply, job_name="a", timestamp=at)
        sent = json.loads(message.body)["data"]["images"]
        assert ["url" in image for image in sent] == [not each for each in UNSAFE]


def test_result_of_a_deployment_without_safety_is_not_used_by_one_with_it(build):
    bucket = MemoryBucket()
    job = job_of(*SEEDS, idempotency_key="order-1")
    run(build(bucket=bucket), job)
    (reply,) = run(build("drop", bucket=bucket), job)
    assert ["url" in image for image in reply["images"]] == [not each for each in UNSAFE]


class FailingBucket(MemoryBucket):
    async def put(self, image, key, *, within_s):
        raise StorageUnavailable("bucket 'images': SlowDown (HTTP 503)")


def test_dropped_image_is_not_in_the_spool_nor_in_what_retry_delivers(build, tmp_path):
    spool = Spool(tmp_path / "spool", secret=SECRET, max_bytes=100_000_000)
    job = job_of(*SEEDS)
    failing = build("drop", bucket=FailingBucket(), spool=spool, max_reply_bytes=1_000)
    (failed,) = run(failing, job)
    assert failed["error"].startswith("storage_unavailable: ")
    kept = len(SEEDS) - sum(UNSAFE)
    assert len(list(spool.folder.glob("*/*.png"))) == kept
    retried = build("drop", bucket=MemoryBucket(), spool=spool)
    (reply,) = run(retried, job)
    assert retried.engine.requests == []
    assert [image["seed"] for image in reply["images"]] == list(SEEDS)
    assert ["url" in image for image in reply["images"]] == [not each for each in UNSAFE]
    assert [image["nsfw"] for image in reply["images"]] == UNSAFE


# --- a classifier that fails ---------------------------------------------------------------------


def raising(error):
    def load():
        raise error

    return load


@pytest.mark.parametrize("error", [ModelUnavailable("no file"), WeightsUnreadable("damaged")])
def test_job_is_refused_before_the_gpu_if_there_is_no_classifier(build, error):
    worker = build("flag", load=raising(error))
    (reply,) = run(worker, make_job())
    assert reply["error"] == str(error)
    assert worker.engine.requests == []


class BrokenClassifier:
    def prepare(self, image):
        return image

    def scores(self, prepared):
        raise RuntimeError("out of memory")


def test_no_image_passes_if_the_classifier_fails(build):
    replies = run(build("flag", load=BrokenClassifier), *(job_of(seed) for seed in SEEDS[:3]))
    assert [reply["error"].partition(":")[0] for reply in replies] == ["internal_error"] * 3


def test_file_with_another_hash_is_not_loaded(tmp_path):
    path = tmp_path / "open_nsfw.onnx"
    path.write_bytes(b"something else")
    with pytest.raises(WeightsUnreadable, match="expected SHA-256 fb29"):
        load_onnx_classifier(path)
    with pytest.raises(ModelUnavailable):
        load_onnx_classifier(tmp_path / "missing.onnx")


# --- the published model, and workers without it -------------------------------------------------


def test_published_model_scores_images_alone_as_in_a_batch():
    classifier = load_onnx_classifier()
    colours = [(0, 0, 0), (230, 180, 150), (20, 200, 40)]
    images = [RawImage(width=64, height=48, pixels=bytes(each) * 64 * 48) for each in colours]
    prepared = [classifier.prepare(image) for image in images]
    together = classifier.scores(prepared)
    alone = [classifier.scores([each])[0] for each in prepared]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx([0.067, 0.248, together[2]], abs=0.02)
    assert together[2] < 0.2


def test_worker_loads_no_classifier_that_nobody_needs(build):
    (reply,) = run(build(load=raising(AssertionError("loaded"))), make_job())
    assert "error" not in reply


def test_deployment_loads_its_classifier_at_start():
    worker = build_worker(make_settings(PIXPOD_SAFETY="drop", PIXPOD_SAFETY_THRESHOLD="0.5"))
    assert worker.capabilities.safety is SafetyAction.DROP
    assert worker.safety.threshold == 0.5
    loaded = threading.Event()
    inner = worker.safety.load

    def load():
        classifier = inner()
        loaded.set()
        return classifier

    worker.safety.load = load
    worker.safety.start()
    assert loaded.wait(60)
    worker.safety.close()


def test_batch_of_the_engine_is_classified_together(classifier):
    """Eight jobs of different prompts share a batch of a tiny model, behind another job."""
    counting = CountingClassifier(classifier)
    environ = {"PIXPOD_MODELS": "sd15-tiny", "PIXPOD_DEVICE": "cpu", "PIXPOD_DELIVERY": "inline"}
    worker = build_worker(make_settings(**environ))
    worker.safety.load = lambda: counting
    first = make_job(model="sd15-tiny", num_inference_steps=1)
    colours = ("red", "blue", "green", "orange", "red", "yellow", "purple", "black")
    jobs = [
        make_job(
            model="sd15-tiny",
            prompt=f"a red circle on a {colour} background",
            num_inference_steps=4,
            seed=index,
            safety=True,
        )
        for index, colour in enumerate(colours)
    ]
    images = [reply["images"][0] for reply in run(worker, first, *jobs)[1:]]
    assert sum(counting.batches) == 8 and len(counting.batches) <= 4
    scores = classifier.scores([classifier.prepare(raw_of(image)) for image in images])
    assert [image["nsfw_score"] for image in images] == pytest.approx(scores, abs=1e-4)
    assert 0 < sum(image["nsfw"] for image in images) < 8


def raw_of(image):
    opened = Image.open(io.BytesIO(base64.b64decode(image["data"]))).convert("RGB")
    return RawImage(width=opened.width, height=opened.height, pixels=opened.tobytes())


# --- beside encoding -----------------------------------------------------------------------------


def photograph(seed):
    """1024x1024 pixels with the 1/f spectrum of photographs."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(1024)[:, None], np.fft.rfftfreq(1024)[None])
    frequency[0, 0] = 1
    shape = (*frequency.shape, 3)
    spectrum = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / frequency[..., None]
    pixels = np.fft.irfft2(spectrum, s=(1024, 1024), axes=(0, 1))
    scaled = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
    data = scaled.clip(0, 255).astype(np.uint8).tobytes()
    return RawImage(width=1024, height=1024, pixels=data)


@pytest.mark.acceptance
@pytest.mark.parametrize("format", ["png", "webp"])
def test_encoding_and_classification_overlap(format):
    """Eight images of 1024 px with the published model: at most 1.3 of the longer of the two."""
    given = make_job(num_images=8, output={"format": format})
    job = parse_job(given, OFFER)
    safe_job = replace(job, output=replace(job.output, safety=SafetyAction.FLAG))
    seeds = job.request.seeds
    images = [ImageResult(pixels=photograph(seed), seed=seed) for seed in range(8)]
    generation = Generation(
        images=tuple(images),
        model=ModelIdentity(name="sdxl", revision="1", precision="float16", weights="baked"),
        timings_ms={},
        device_ms=0.0,
        num_calls=1,
    )
    assert len(seeds) == 8

    async def measure(safety):
        async def timed(work):
            began = time.perf_counter()
            await work
            return time.perf_counter() - began

        def encoding(job):
            return encode_images(job, generation, MetadataOptions(), safety, Timeline())

        pixels = [each.pixels for each in images]
        await safety.verdicts(pixels)
        rounds = []
        for _ in range(7):
            alone = await timed(encoding(job)), await timed(safety.verdicts(pixels))
            rounds.append((*alone, await timed(encoding(safe_job))))
        return rounds

    safety = Safety(load=load_onnx_classifier)
    rounds = asyncio.run(measure(safety))
    safety.close()
    ratios = [both / max(encoded, classified) for encoded, classified, both in rounds]
    encoded, classified, both = (statistics.median(each) for each in zip(*rounds, strict=True))
    print(f"\n{format}: encode {encoded:.3f} s, classify {classified:.3f} s, both {both:.3f} s")
    print(f"ratio {statistics.median(ratios):.2f} of {min(ratios):.2f} to {max(ratios):.2f}")
    assert statistics.median(ratios) <= 1.3
