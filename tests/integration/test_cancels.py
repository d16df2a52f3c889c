"""Jobs that are cancelled at random moments: the device is free within two steps, nothing is left.

A real model on a CPU, with images into a directory and into a bucket.
"""

import asyncio
import contextlib
import io
import random
import threading
import time
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image
from support.factories import make_job, make_request
from support.s3_server import S3Server

from pixpod.bootstrap import build_worker
from pixpod.engine.engine import DiffusionEngine
from pixpod.job import Quality
from pixpod.serving.worker import Worker
from pixpod.settings import Settings

pytest_plugins = ["integration.s3_servers"]

SEED = 15
STEPS = 12
NUM_DEVICE_STEPS = STEPS + 1
"""Of a whole request: denoiser calls and the decoding."""

MAX_STEPS = 2
SIZE = 128
QUIET_LIMIT_S = 10.0
JOB = {"num_inference_steps": STEPS, "width": SIZE, "height": SIZE}


class Directory:
    """A place for images that a test can list."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.environ = {"PIXPOD_DELIVERY": "directory", "PIXPOD_OUTPUT_DIR": str(path)}

    def files(self) -> dict[str, bytes]:
        """The content of each file, by its path."""
        files = [path for path in self._path.rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in files}


class Bucket:
    """As a Directory: the keys that begin with a prefix."""

    def __init__(self, server: S3Server, prefix: str) -> None:
        self._server = server
        self._prefix = prefix
        self.environ = {**server.environ(), "PIXPOD_S3_PREFIX": prefix}

    def files(self) -> dict[str, bytes]:
        keys = [key for key in self._server.all_keys() if key.startswith(self._prefix)]
        return {key: self._server.get(key)["Body"] for key in keys}


@pytest.fixture(params=["directory", "bucket"])
def place(request, tmp_path):
    if request.param == "directory":
        return Directory(tmp_path)
    return Bucket(request.getfixturevalue("juicefs"), tmp_path.name)


def run(coroutine_of, environ: dict[str, str]):
    """What the coroutine returns that this makes of a started worker."""
    environ = {"PIXPOD_MODELS": make_request().model, "PIXPOD_DEVICE": "cpu", **environ}

    async def with_worker():
        async with build_worker(Settings.from_env(environ)) as worker:
            return await coroutine_of(worker)

    return asyncio.run(with_worker())


async def steps_after_cancel(worker: Worker, steps: list[str], moments: random.Random) -> int:
    """Cancel a request at a random step. Returns how many steps the device still begins for it."""
    reached, cancel_at = asyncio.Event(), moments.randint(1, STEPS)
    loop = asyncio.get_running_loop()

    def on_step(step: int, num_steps: int) -> None:
        if step == cancel_at:
            loop.call_soon_threadsafe(reached.set)

    cancelled = asyncio.create_task(worker.engine.generate(request(), on_step))
    await reached.wait()
    num_before = len(steps)
    cancelled.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await cancelled
    await worker.engine.generate(request())  # begins when the device is free
    return len(steps) - num_before - NUM_DEVICE_STEPS


def request():
    return make_request(num_inference_steps=STEPS, width=SIZE, height=SIZE)


def count_steps(worker: Worker) -> list[str]:
    """A list that grows with each call of the denoiser or the decoder, when the call begins."""
    assert isinstance(worker.engine, DiffusionEngine)
    model = worker.engine.loader.load(request().model, Quality.DEFAULT).result().loaded
    steps = list[str]()
    model.denoiser.register_forward_pre_hook(lambda *_: steps.append("denoise"))
    model.components["vae"].decoder.register_forward_pre_hook(lambda *_: steps.append("decode"))
    return steps


async def cancel_jobs(worker: Worker, count: int) -> list[str]:
    """Cancel jobs at any moment of their lives. Returns the ids of those that had ended before."""
    job = make_job(**JOB)
    began_at = time.monotonic()
    await worker.handle({**job, "id": "whole"})
    life_s = time.monotonic() - began_at
    moments, ended = random.Random(SEED), ["whole"]
    for number in range(count):
        task = asyncio.create_task(worker.handle({**job, "id": f"job-{number}"}))
        await asyncio.sleep(moments.uniform(0, 1.1 * life_s))
        if not task.cancel():
            ended.append(f"job-{number}")
        await asyncio.wait({task})
    return ended


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.acceptance)])
def test_device_is_free_within_two_steps(count):
    async def measure(worker: Worker) -> list[int]:
        await worker.engine.generate(request())  # loads the model
        steps = count_steps(worker)
        await worker.engine.generate(request())
        assert len(steps) == NUM_DEVICE_STEPS
        moments = random.Random(SEED)
        return [await steps_after_cancel(worker, steps, moments) for _ in range(count)]

    begun = run(measure, {})
    table = ", ".join(f"{number}: {begun.count(number)}" for number in sorted({*begun}))
    print(f"\ncancels {count}, by the number of steps that the device still began: {table}")
    assert max(begun) <= MAX_STEPS


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.acceptance)])
def test_cancelled_jobs_leave_nothing(place, count):
    """A job that is cancelled while its image is being stored leaves the whole image, or none."""

    async def cancel(worker: Worker) -> list[str]:
        await worker.handle(make_job(**JOB))  # loads the model
        return await cancel_jobs(worker, count)

    before = {thread.ident for thread in threading.enumerate()}
    ended = run(cancel, place.environ)
    deadline = time.monotonic() + QUIET_LIMIT_S
    while left := [each.name for each in threading.enumerate() if each.ident not in before]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    files = {PurePosixPath(name): content for name, content in place.files().items()}
    results = {path for path in files if path.suffix == ".result"}
    images = {path for path in files if path.suffix == ".png"}
    assert files.keys() == images | results
    for path in images:
        with Image.open(io.BytesIO(files[path])) as image:
            image.load()
    assert {*ended} <= {path.parent.name for path in images}
    assert {path.parent.name for path in results} <= {"job-1", *ended}
