"""Jobs that are cancelled at random moments: the device is free within two steps, nothing is left.

A real model on a CPU, with images into a directory.
"""

import asyncio
import contextlib
import io
import random
import statistics
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from support.factories import make_job, make_request

from pixpod.bootstrap import build_worker
from pixpod.job import Generation
from pixpod.serving.worker import Worker
from pixpod.settings import Settings

SEED = 15
STEPS = 12
SIZE = 128
QUIET_LIMIT_S = 10.0
JOB = {"num_inference_steps": STEPS, "width": SIZE, "height": SIZE}


def run(coroutine_of, tmp_path: Path):
    """What the coroutine returns that this makes of a started worker."""
    environ = {
        "PIXPOD_MODELS": make_request().model,
        "PIXPOD_DEVICE": "cpu",
        "PIXPOD_OUTPUT_DIR": str(tmp_path),
    }

    async def with_worker():
        async with build_worker(Settings.from_env(environ)) as worker:
            return await coroutine_of(worker)

    return asyncio.run(with_worker())


async def steps_until_free(worker: Worker, moments: random.Random) -> float:
    """Cancel a request at a random step. Returns how long the next one waits, in steps of it."""
    reached, cancel_at = asyncio.Event(), moments.randint(1, STEPS - 2)
    loop = asyncio.get_running_loop()

    def on_step(step: int, steps: int) -> None:
        if step == cancel_at:
            loop.call_soon_threadsafe(reached.set)

    cancelled = asyncio.create_task(worker.engine.generate(request(), on_step))
    await reached.wait()
    cancelled.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await cancelled
    following = await worker.engine.generate(request())
    return following.timings_ms["queue"] / step_ms(following)


def request():
    return make_request(num_inference_steps=STEPS, width=SIZE, height=SIZE)


def step_ms(generation: Generation) -> float:
    return generation.timings_ms["denoise"] / STEPS


async def cancel_jobs(worker: Worker, count: int) -> list[str]:
    """Cancel jobs at any moment of their lives. Returns the ids of those that had ended before."""
    job = make_job(output={"delivery": "directory"}, **JOB)
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
def test_device_is_free_within_two_steps(tmp_path, count):
    async def measure(worker: Worker) -> list[float]:
        await worker.engine.generate(request())
        moments = random.Random(SEED)
        return [await steps_until_free(worker, moments) for _ in range(count)]

    waits = run(measure, tmp_path)
    print(
        f"\ncancels {count}, steps until the device is free: median "
        f"{statistics.median(waits):.2f}, most {max(waits):.2f}"
    )
    # beside other tests a step of milliseconds may seem long; the acceptance run has the machine
    assert (statistics.median(waits) if count == 10 else max(waits)) < 2


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.acceptance)])
def test_cancelled_jobs_leave_nothing(tmp_path, count):
    """A job that is cancelled while its image is being stored leaves the whole image, or none."""

    async def cancel(worker: Worker) -> list[str]:
        await worker.handle(make_job(output={"delivery": "directory"}, **JOB))  # loads the model
        return await cancel_jobs(worker, count)

    before = {thread.ident for thread in threading.enumerate()}
    ended = run(cancel, tmp_path)
    deadline = time.monotonic() + QUIET_LIMIT_S
    while left := [each.name for each in threading.enumerate() if each.ident not in before]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".png"}
    for path in files:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.load()
    assert {*ended} <= {path.parent.name for path in files}
