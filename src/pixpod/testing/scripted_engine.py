"""ScriptedEngine: an Engine that takes a given time and returns black images.

It shares batches and reports steps as the real engine does. Standard library only.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pixpod.engine.base import StepListener
from pixpod.job import Generation, GenerationRequest, ImageResult, ModelIdentity, RawImage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedTimes:
    """One batch takes `batch_s`, and `image_s` for each of its at most `max_batch_size` images.

    Loading takes `load_s`; jobs wait for it.
    """

    batch_s: float
    image_s: float
    max_batch_size: int
    load_s: float = 0.0


@dataclass(slots=True, eq=False)
class _QueuedRequest:
    request: GenerationRequest
    on_step: StepListener | None
    submitted_at: float
    done: "asyncio.Future[Generation]"

    @property
    def steps(self) -> int:
        return self.request.sampling.num_inference_steps


class ScriptedEngine:
    """An Engine; one image per request. Requests with the same number of steps share a batch."""

    device_name = "scripted"

    def __init__(self, times: ScriptedTimes) -> None:
        self._times = times
        self._ready_at = 0.0
        self._queue: list[_QueuedRequest] = []
        self._running: asyncio.Task[None] | None = None

    @property
    def is_warm(self) -> bool:
        return time.monotonic() >= self._ready_at

    def start(self) -> None:
        self._ready_at = time.monotonic() + self._times.load_s

    def check_host(self) -> None:
        pass

    def boot_ms(self) -> dict[str, float]:
        return {"load": self._times.load_s * 1e3}

    def stop(self) -> None:
        pass

    async def generate(
        self, request: GenerationRequest, on_step: StepListener | None = None
    ) -> Generation:
        done = asyncio.get_running_loop().create_future()
        self._queue.append(_QueuedRequest(request, on_step, time.monotonic(), done))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run_all())
        generation: Generation = await done
        return generation

    async def _run_all(self) -> None:
        await asyncio.sleep(max(0.0, self._ready_at - time.monotonic()))
        while self._queue:
            peers = [each for each in self._queue if each.steps == self._queue[0].steps]
            batch = peers[: self._times.max_batch_size]
            self._queue = [each for each in self._queue if each not in batch]
            await self._run(batch, batch[0].steps)

    async def _run(self, batch: Sequence[_QueuedRequest], steps: int) -> None:
        began_at = time.monotonic()
        step_s = (self._times.batch_s + self._times.image_s * len(batch)) / steps
        for step in range(steps):
            if all(each.done.cancelled() for each in batch):
                log.info("batch ended early", extra={"step": step, "steps": steps})
                return
            await asyncio.sleep(began_at + (step + 1) * step_s - time.monotonic())
            for each in batch:
                if each.on_step and not each.done.cancelled():
                    each.on_step(step + 1, steps)
        device_ms = (time.monotonic() - began_at) * 1e3
        for each in batch:
            with contextlib.suppress(asyncio.InvalidStateError):  # cancelled meanwhile
                each.done.set_result(_generation(each, began_at, device_ms, len(batch)))


def _generation(
    queued: _QueuedRequest, began_at: float, device_ms: float, batch_size: int
) -> Generation:
    request = queued.request
    width, height = request.output_size
    pixels = RawImage(width=width, height=height, pixels=bytes(3 * width * height))
    return Generation(
        images=(ImageResult(pixels=pixels, seed=request.seeds[0]),),
        model=ModelIdentity(
            name=request.model, revision="scripted", precision="none", weights="none"
        ),
        timings_ms={"queue": (began_at - queued.submitted_at) * 1e3, "denoise": device_ms},
        device_ms=device_ms / batch_size,
        num_calls=queued.steps,
    )
