"""When the requests of an open loop come, and what they met. Standard library only."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pixpod_bench.figures import percentile
from pixpod_bench.results import LoadPoint

SEED = 0
"""Of the arrivals and of the order of requests: the same for all ways of serving."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One request: when it came and when it had its images, in seconds of one clock."""

    came_s: float
    done_s: float
    device_s: float
    num_images: int


def arrivals(rate_per_s: float, count: int) -> list[float]:
    """Seconds from the start: a Poisson process, the same each time."""
    source, now, times = random.Random(SEED), 0.0, []  # noqa: S311 - no secret
    for _ in range(count):
        now += source.expovariate(rate_per_s)
        times.append(now)
    return times


def summarize(served: Sequence[Served], *, is_batching: bool, load: float) -> LoadPoint:
    began, ended = min(each.came_s for each in served), max(each.done_s for each in served)
    waits = [each.done_s - each.came_s for each in served]
    return LoadPoint(
        is_batching=is_batching,
        load=load,
        requests_per_s=len(served) / (ended - began),
        images_per_s=sum(each.num_images for each in served) / (ended - began),
        p50_s=percentile(waits, 50),
        p95_s=percentile(waits, 95),
        p99_s=percentile(waits, 99),
        busy_percent=100 * sum(each.device_s for each in served) / (ended - began),
    )
