"""ScriptedCard: an Engine that takes as long as a card would, and draws one colour.

It shares batches and steps as the real engine does, but is told what they cost.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pixpod.engine.base import StepListener
from pixpod.job import Generation, GenerationRequest, ModelIdentity, RawImage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSpec:
    """Seconds of one batch are `batch_s` and `row_s` for each of its rows, at most `max_rows`.

    Loading takes `load_s`; jobs wait for it.
    """

    batch_s: float
    row_s: float
    max_rows: int
    load_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Waiting:
    request: GenerationRequest
    on_step: StepListener | None
    asked_at: float
    done: "asyncio.Future[Generation]"
    timings_ms: dict[str, float] = field(default_factory=dict)


class ScriptedCard:
    """An Engine; one image per request."""

    device_name = "scripted"

    def __init__(self, spec: CardSpec) -> None:
        self._spec = spec
        self._ready_at = 0.0
        self._waiting: list[_Waiting] = []
        self._drawing: asyncio.Task[None] | None = None

    @property
    def is_warm(self) -> bool:
        return time.monotonic() >= self._ready_at

    def start(self) -> None:
        self._ready_at = time.monotonic() + self._spec.load_s

    def check_host(self) -> None:
        pass

    def boot_ms(self) -> dict[str, float]:
        return {"load": self._spec.load_s * 1e3}

    def stop(self) -> None:
        pass

    async def generate(
        self, request: GenerationRequest, on_step: StepListener | None = None
    ) -> Generation:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(request, on_step, time.monotonic(), done))
        if self._drawing is None or self._drawing.done():
            self._drawing = asyncio.create_task(self._draw_all())
        generation: Generation = await done
        return generation

    async def _draw_all(self) -> None:
        await asyncio.sleep(max(0.0, self._ready_at - time.monotonic()))
        while self._waiting:
            steps = self._waiting[0].request.num_inference_steps
            mates = [each for each in self._waiting if _steps(each) == steps]
            batch = mates[: self._spec.max_rows]
            self._waiting = [each for each in self._waiting if each not in batch]
            await self._draw(batch, steps)

    async def _draw(self, batch: Sequence[_Waiting], steps: int) -> None:
        began_at = time.monotonic()
        step_s = (self._spec.batch_s + self._spec.row_s * len(batch)) / steps
        for step in range(steps):
            if all(each.done.cancelled() for each in batch):
                log.info("drawing ended early", extra={"step": step, "steps": steps})
                return
            await asyncio.sleep(began_at + (step + 1) * step_s - time.monotonic())
            for each in batch:
                if each.on_step and not each.done.cancelled():
                    each.on_step(step + 1, steps)
        device_ms = (time.monotonic() - began_at) * 1e3
        for each in batch:
            with contextlib.suppress(asyncio.InvalidStateError):  # cancelled meanwhile
                each.done.set_result(_generation(each, began_at, device_ms, len(batch)))


def _steps(waiting: _Waiting) -> int:
    return waiting.request.num_inference_steps


def _generation(waiting: _Waiting, began_at: float, device_ms: float, num_rows: int) -> Generation:
    request = waiting.request
    pixels = bytes(3 * request.width * request.height)
    return Generation(
        images=(RawImage(width=request.width, height=request.height, pixels=pixels),),
        model=ModelIdentity(
            name=request.model, revision="scripted", precision="none", weights="none"
        ),
        timings_ms={"queue": (began_at - waiting.asked_at) * 1e3, "denoise": device_ms},
        device_ms=device_ms / num_rows,
    )
