"""How far one job is: kept for whoever asks, and told to the platform while it is drawn.

Knows neither the platform's words nor the engine: numbers come in, an update goes out.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""Between two looks at a job, hence the least time between two updates."""

LEAST_PERCENT = 10
"""What must have been gained since the last update; a long job has ten of them, not hundreds."""


class ProgressSender(Protocol):
    """Tells the platform how far a job is."""

    async def __call__(self, job_id: str, update: Mapping[str, object]) -> None:
        """Returns once the platform has the update or will not get it any more; never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Position:
    """How many of its steps a job has done."""

    step: int
    steps: int

    @property
    def percent(self) -> int:
        return self.step * 100 // max(1, self.steps)

    @property
    def is_near_end(self) -> bool:
        """Whether the last step runs, or is over: an update could overtake the result, and the
        job would stay IN_PROGRESS for ever (runpod-python #250).
        """
        return self.step >= self.steps - 1

    def as_update(self) -> dict[str, object]:
        phase = "denoising" if self.step else "waiting"
        return {"phase": phase, "step": self.step, "steps": self.steps, "percent": self.percent}


class Progress:
    """Where one job is. Without a sender nobody is told."""

    def __init__(
        self,
        *,
        job_id: str,
        num_steps: int,
        send: ProgressSender | None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.position = Position(0, num_steps)
        self._job_id = job_id
        self._send = send
        self._interval_s = interval_s

    def on_step(self, step: int, steps: int) -> None:
        """An engine's StepListener; called by the device's thread."""
        self.position = Position(step, steps)

    @asynccontextmanager
    async def told(self) -> AsyncIterator[None]:
        """Send updates during the block, one at a time; none is under way when it is over.

        Of a cancelled job there is no result that an update could overtake, so that nothing is
        waited for.
        """
        if self._send is None:
            yield
            return
        is_over = asyncio.Event()
        telling = asyncio.create_task(self._tell(self._send, is_over))
        telling.add_done_callback(_log_unexpected)
        try:
            yield
        except asyncio.CancelledError:
            telling.cancel()
            raise
        finally:
            is_over.set()
            await asyncio.wait([telling])

    async def _tell(self, send: ProgressSender, is_over: asyncio.Event) -> None:
        told_percent = -LEAST_PERCENT
        while not await _is_set_within(is_over, self._interval_s):
            position = self.position
            if position.is_near_end or position.percent - told_percent < LEAST_PERCENT:
                continue
            await send(self._job_id, position.as_update())
            told_percent = position.percent


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _log_unexpected(telling: "asyncio.Task[None]") -> None:
    """A job is no worse for a caller who was not told how far it is."""
    if not telling.cancelled() and telling.exception():
        log.error("progress failed unexpectedly", exc_info=telling.exception())
