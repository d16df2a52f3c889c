"""(d) Whether the engine's memory grows: mixed jobs, and the process' resident set after each lot.

Runs in a process of its own, so that what else the benchmark holds is not in it.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pixpod.logs import configure_logging
from pixpod_bench.throughput.alone import draw_all, running_engine
from pixpod_bench.throughput.deployment import environ
from pixpod_bench.throughput.figures import slope
from pixpod_bench.throughput.workload import mixed_jobs

LOT = 10
"""Jobs that are submitted at once."""

PER_JOBS = 500
LIMIT_PERCENT = 1.0
"""Of growth in so many jobs."""

PROMPT_CACHE_MB = "1"
"""Soon full: it is bounded, and while it fills it looks like a leak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Resident bytes after each lot of jobs. `percent` is the slope of the line through those
    after the warm-up, for 500 jobs, over what there was at its start.
    """

    warm_up_jobs: int
    jobs: int
    sampled_bytes: tuple[int, ...]
    lot: int
    start_bytes: int
    percent: float


def measure_growth(warm_up_jobs: int, num_jobs: int, on_done: Callable[[], object]) -> Growth:
    """Both are multiples of LOT."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        sampled_bytes = executor.submit(_sample, warm_up_jobs + num_jobs).result()
    on_done()
    return growth_of(sampled_bytes, warm_up_jobs, num_jobs)


def growth_of(sampled_bytes: tuple[int, ...], warm_up_jobs: int, num_jobs: int) -> Growth:
    """The first sample is after the first lot."""
    first = warm_up_jobs // LOT
    after = sampled_bytes[first:]
    drawn = [LOT * number for number in range(len(after))]
    start_bytes = sampled_bytes[first - 1]
    return Growth(
        warm_up_jobs=warm_up_jobs,
        jobs=num_jobs,
        sampled_bytes=sampled_bytes,
        lot=LOT,
        start_bytes=start_bytes,
        percent=100 * slope(drawn, after) * PER_JOBS / start_bytes,
    )


def _sample(num_jobs: int) -> tuple[int, ...]:
    configure_logging("ERROR")
    jobs = mixed_jobs(num_jobs)
    sampled = []
    with running_engine(environ(PIXPOD_PROMPT_CACHE_MB=PROMPT_CACHE_MB)) as engine:
        for first in range(0, num_jobs, LOT):
            draw_all(engine, jobs[first : first + LOT])
            sampled.append(_resident_bytes())
    return tuple(sampled)


def _resident_bytes() -> int:
    """Return what this process holds of the host's memory. Linux only."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
