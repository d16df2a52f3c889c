"""Number of jobs that a worker takes at a time.

A job that a worker has taken is IN_PROGRESS for the platform: its autoscaler does not see it wait,
no other worker can take it, and its execution time counts. So a worker takes the fewest jobs that
keep its GPU busy.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pixpod.catalog import ModelSpec
from pixpod.engine.scheduling.batching import max_batch_size
from pixpod.methods import batch_key_of, method_of


def max_concurrency(models: Iterable[ModelSpec]) -> int:
    """Return the number of jobs for a warm worker: the fewest of its models' rules.

    The number holds for all of a worker's jobs, whatever model they name. If it is too small for
    a model, the GPU idles for parts of a second; if it is too large, a job waits behind several
    of the slowest while another worker idles. The SDK's loop (1.12.0, `rp_scale.py`) sleeps for a
    second whenever it has no free slot.
    """
    return min(_concurrency_of(model) for model in models)


def _concurrency_of(model: ModelSpec) -> int:
    """Apply the first of the family's rules that fits: a batch, and some jobs ahead of it."""
    request = model.default_request()
    num_calls = method_of(model, request).num_calls
    rule = next(
        rule
        for rule in model.family.concurrency
        if rule.max_steps is None or num_calls <= rule.max_steps
    )
    batch_size = max_batch_size(model.family, batch_key_of(request))
    return min(rule.max_batch_size, batch_size) + rule.ahead


REPORT_LIMIT_S = 5.0
REPORT_POLL_S = 0.02
"""Interval at which a worker checks whether the SDK has reported the jobs answered before."""


@dataclass(kw_only=True, eq=False)
class Concurrency:
    """The SDK's concurrency modifier: how many jobs it may take at a time.

    The SDK applies a changed number only while it has no job, and takes none until then. So the
    number changes only when the worker becomes warm and when it is to be refreshed.
    `num_taken` counts the jobs that the SDK has taken and not yet reported.
    """

    max_when_warm: int
    is_warm: Callable[[], bool]
    num_taken: Callable[[], int]

    def __post_init__(self) -> None:
        self._num_running = 0
        self._limit = 1
        self._is_ending = False
        self._polls_no_more = False

    def __call__(self, current: int) -> int:
        """Return the number of jobs to take; `current` is the last number returned."""
        if self._is_ending and self.num_taken() > 0:
            self._polls_no_more = True
            # never less than before: jobs in the SDK's own queue would no longer be started
            return current + 1 if current == self._limit else self._limit
        if self.is_warm():
            self._limit = self.max_when_warm
        return self._limit

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a job until its reply is made."""
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1

    async def end(self, *, is_urgent: bool) -> bool:
        """Take no more jobs; returns whether the one to be answered is the last one here.

        The platform may end a worker that requests a refresh with all its jobs. So only the last
        job may request it, once the others are reported. No poll may be open either, by which
        another job could come, unless the refresh `is_urgent`: then such a job would fail anyway.
        """
        self._is_ending = True
        if not (is_urgent or self._polls_no_more or self._limit == 1):
            return False
        waited_s = 0.0
        while self._num_running <= 1 and self.num_taken() > 1 and waited_s < REPORT_LIMIT_S:
            await asyncio.sleep(REPORT_POLL_S)
            waited_s += REPORT_POLL_S
        return self._num_running <= 1 and self.num_taken() <= 1
