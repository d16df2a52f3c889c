"""POLICY: how many jobs a worker holds at a time, and how it comes to hold none.

A held job is IN_PROGRESS for the platform: its scaler does not see it wait, no other worker can
have it, and it ages. So a worker holds the fewest that keep its card busy.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pixpod.catalog import Family, ModelSpec
from pixpod.engine.scheduling.batching import GroupKey, most_rows
from pixpod.job import Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRule:
    """For models of a family, or those with at most `max_steps` by default: a batch and some more.

    The batch has as many rows as the card takes at the model's default size, at most `max_rows`;
    `ahead` jobs wait behind it.
    """

    family: Family
    max_steps: int | None = None
    max_rows: int
    ahead: int
    reason: str


FEW_STEPS = 12

HOLD_RULES = (
    HoldRule(
        family=Family.FLUX,
        max_steps=FEW_STEPS,
        max_rows=8,
        ahead=2,
        reason="0.4 s an image on an H100, and the SDK looks for jobs once a second",
    ),
    HoldRule(
        family=Family.FLUX,
        max_rows=2,
        ahead=1,
        reason="full with one image of 1024 px, which takes longer than to fetch the next",
    ),
    HoldRule(
        family=Family.SDXL,
        max_steps=FEW_STEPS,
        max_rows=8,
        ahead=1,
        reason="few steps leave the card idle: a batch of eight takes about a second",
    ),
    HoldRule(
        family=Family.SDXL,
        max_rows=4,
        ahead=1,
        reason="four take 3 s together; more gain little, and the last would wait for two batches",
    ),
    HoldRule(
        family=Family.SD15,
        max_rows=8,
        ahead=1,
        reason="a quarter of SDXL's work an image, which leaves the card idle when it is alone",
    ),
)
"""The first rule that fits a model counts.

Seconds are targets and published figures for an H100; a slower card is busy with fewer. The SDK's
take loop (1.12.0, `rp_scale.py`) sleeps for a second whenever it has no free slot.
"""


def jobs_to_hold(models: Iterable[ModelSpec]) -> int:
    """For a warm worker that serves these models: the fewest that any of them is given.

    The number holds for all of a worker's jobs, whatever they ask for. If it is too small for a
    model, the card idles for parts of a second; if it is too large, a job waits behind several of
    the slowest while another worker idles, and nothing can take it away again.
    """
    return min(_jobs_for(model) for model in models)


def _jobs_for(model: ModelSpec) -> int:
    defaults = model.defaults
    rule = next(rule for rule in HOLD_RULES if _fits(rule, model))
    key = GroupKey(
        model=model.name,
        quality=Quality.DEFAULT,
        width=defaults.width,
        height=defaults.height,
        max_sequence_length=defaults.max_sequence_length,
        num_inference_steps=defaults.num_inference_steps,
        scheduler=defaults.scheduler,
        guidance_scale=defaults.guidance_scale,
        true_cfg_scale=None,
    )
    return min(rule.max_rows, most_rows(model.family, key)) + rule.ahead


def _fits(rule: HoldRule, model: ModelSpec) -> bool:
    steps = model.defaults.num_inference_steps
    return rule.family is model.family and (rule.max_steps is None or steps <= rule.max_steps)


REPORT_LIMIT_S = 5.0
REPORT_POLL_S = 0.02
"""For the SDK to report what was answered just before: a batch ends for all its jobs at once."""


class HeldJobs:
    """What the SDK asks before it asks for jobs: its concurrency modifier.

    The SDK takes a changed number only when it holds no job, and takes none until then. So the
    number changes once, when the worker is warm; and again for a worker that shall end.
    """

    def __init__(
        self, *, when_warm: int, is_warm: Callable[[], bool], num_held: Callable[[], int]
    ) -> None:
        """`num_held` counts the jobs that the SDK has taken and not yet reported."""
        self._when_warm = when_warm
        self._is_warm = is_warm
        self._num_held = num_held
        self._num_running = 0
        self._limit = 1
        self._shall_end = False
        self._takes_none = False

    def __call__(self, current: int) -> int:
        """How many jobs to hold; `current` is what was said the last time."""
        if self._shall_end and self._num_held() > 0:
            self._takes_none = True
            # never below: what the SDK holds in its own queue would not be started any more
            return current + 1 if current == self._limit else self._limit
        if self._is_warm():
            self._limit = self._when_warm
        return self._limit

    @contextmanager
    def running(self) -> Iterator[None]:
        """To be held open for each job until its reply is made."""
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1

    async def end(self, *, is_urgent: bool) -> bool:
        """Take no more; returns whether the job that is to be answered is the last one here.

        The platform may end a worker that asks to be renewed with all it holds. So only that job
        may ask, once the others are reported; and no poll may be open, by which another could
        come, unless it `is_urgent`: what came would fail.
        """
        self._shall_end = True
        if not (is_urgent or self._takes_none or self._limit == 1):
            return False
        waited_s = 0.0
        while self._num_running <= 1 and self._num_held() > 1 and waited_s < REPORT_LIMIT_S:
            await asyncio.sleep(REPORT_POLL_S)
            waited_s += REPORT_POLL_S
        return self._num_running <= 1 and self._num_held() <= 1
