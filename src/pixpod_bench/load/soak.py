"""Whether the worker's memory grows over many mixed jobs."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from pixpod_bench.load.jobs import mixed_jobs
from pixpod_bench.load.sides import running_side

LOT = 10
"""Jobs that are submitted at once."""

PER_JOBS = 500
LIMIT_PERCENT = 1.0
"""The most that memory may grow in so many jobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Resident bytes after each lot.

    `percent` is the slope of the line through those after the warm-up, for PER_JOBS jobs, over
    what there was at its start.
    """

    warm_up_jobs: int
    jobs: int
    resident_bytes: tuple[int, ...]
    start_bytes: int
    percent: float


def measure_growth(warm_up_jobs: int, num_jobs: int, on_run: Callable[[], object]) -> Growth:
    """Both numbers are multiples of LOT.

    The prompt cache is 1 MB and soon full: while it fills it would look like a leak.
    """
    jobs = mixed_jobs(warm_up_jobs + num_jobs)
    resident = []
    with running_side(more={"PIXPOD_PROMPT_CACHE_MB": "1"}) as side:
        for first in range(0, len(jobs), LOT):
            side.order("burst", jobs=jobs[first : first + LOT], is_batching=True)
            resident.append(side.order("memory")["resident_bytes"])
            on_run()
    return growth_of(tuple(resident), warm_up_jobs, num_jobs)


def growth_of(resident_bytes: tuple[int, ...], warm_up_jobs: int, num_jobs: int) -> Growth:
    """The first figure is after the first lot."""
    first = warm_up_jobs // LOT
    after = resident_bytes[first:]
    start_bytes = resident_bytes[first - 1]
    slope = statistics.linear_regression([LOT * n for n in range(len(after))], after).slope
    return Growth(
        warm_up_jobs=warm_up_jobs,
        jobs=num_jobs,
        resident_bytes=resident_bytes,
        start_bytes=start_bytes,
        percent=100 * slope * PER_JOBS / start_bytes,
    )
