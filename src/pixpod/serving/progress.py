"""Position of one job, and the updates about it that go to the platform.

Knows neither the platform's protocol nor the engine: it converts numbers to updates.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""Interval at which a job's position is checked, hence the least time between two updates."""

MIN_PERCENT = 10
"""Least progress between two updates: a long job has ten updates, not hundreds."""


ProgressSender = Callable[[str, Mapping[str, object]], Awaitable[None]]
"""Reports an update about a job, by its id, to the platform. Returns once the platform has it or
will not get it; never raises.
"""


@dataclass(frozen=True, slots=True)
class Position:
    """Denoiser calls of one image that a job has done, and all of them."""

    step: int
    steps: int

    @property
    def percent(self) -> int:
        return self.step * 100 // max(1, self.steps)

    @property
    def is_near_end(self) -> bool:
        """True while the last step is running and afterwards.

        An update could overtake the result then, and the job would stay IN_PROGRESS for ever
        (runpod-python #250).
        """
        return self.step >= self.steps - 1

    def as_update(self) -> dict[str, object]:
        phase = "denoising" if self.step else "waiting"
        return {"phase": phase, "step": self.step, "steps": self.steps, "percent": self.percent}


@dataclass(kw_only=True, eq=False)
class Progress:
    """Tracks one job. Without a sender, progress is not reported."""

    job_id: str
    num_calls: int
    send: ProgressSender | None
    interval_s: float = INTERVAL_S

    def __post_init__(self) -> None:
        self.position = Position(0, self.num_calls)

    def on_step(self, step: int, steps: int) -> None:
        """An engine's StepListener; called by the device's thread."""
        self.position = Position(step, steps)

    @asynccontextmanager
    async def reporting(self) -> AsyncIterator[None]:
        """Send updates during the block, one at a time; none is under way when it is over.

        A cancelled job has no result that an update could overtake: nothing is waited for.
        """
        if self.send is None:
            yield
            return
        is_over = asyncio.Event()
        reports = asyncio.create_task(self._report(self.send, is_over))
        reports.add_done_callback(_log_unexpected)
        try:
            yield
        except asyncio.CancelledError:
            reports.cancel()
            raise
        finally:
            is_over.set()
            await asyncio.wait([reports])

    async def _report(self, send: ProgressSender, is_over: asyncio.Event) -> None:
        reported_percent = -MIN_PERCENT
        while not await _is_set_within(is_over, self.interval_s):
            position = self.position
            if position.is_near_end or position.percent - reported_percent < MIN_PERCENT:
                continue
            await send(self.job_id, position.as_update())
            reported_percent = position.percent


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _log_unexpected(reports: "asyncio.Task[None]") -> None:
    """Log an error of the reports, which does not affect the job itself."""
    if not reports.cancelled() and reports.exception():
        log.error("progress failed unexpectedly", exc_info=reports.exception())
