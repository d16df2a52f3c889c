"""Measures mixed jobs through the emulator and the real SDK: a plain worker, and pixpod's with and
without batching, each with the same number of jobs at once.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pixpod_bench.figures import Ratio, alternate, percentile, ratio_of
from pixpod_bench.load.endpoints import (
    Answer,
    Platform,
    our_endpoint,
    plain_endpoint,
    running_platform,
)
from pixpod_bench.load.jobs import Payload, levels_apart, mixed_jobs

PLAIN, OFF, ON = "plain worker", "ours, batching off", "ours, batching on"
COMPARED = ((ON, PLAIN), (OFF, PLAIN), (ON, OFF))

WARM_UP_SEED = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """One round of one side, all jobs submitted at once."""

    answers: Sequence[Answer]

    @property
    def images_per_s(self) -> float:
        began = min(answer.submitted_at for answer in self.answers)
        return len(self.answers) / (max(answer.ended_at for answer in self.answers) - began)


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFigures:
    """Figures of one side. `latency` is from submission to end, `levels_apart` the distance from
    the plain worker's images.
    """

    jobs: int
    images_per_s: float
    latency_p50_s: float
    latency_p95_s: float
    levels_apart: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """Figures of all sides. `ratios` are of images per second, round by round, by `A over B`."""

    concurrency: int
    ratios: Mapping[str, Ratio]
    sides: Mapping[str, SideFigures]


def measure_mixed(
    num_jobs: int, rounds: int, concurrency: int, on_run: Callable[[], object]
) -> Mixed:
    """Measure all sides. All workers are warmed up first; those that have no jobs do nothing."""
    jobs = mixed_jobs(num_jobs)
    endpoints = {
        PLAIN: plain_endpoint("plain", concurrency),
        OFF: our_endpoint("off", concurrency, is_batching=False),
        ON: our_endpoint("on", concurrency, is_batching=True),
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        running_platform([*endpoints.values()], Path(folder)) as platform,
    ):
        for endpoint in endpoints.values():
            platform.run(endpoint.id, mixed_jobs(concurrency, WARM_UP_SEED))
        sides = {
            name: partial(_run, platform, endpoint.id, jobs, rounds)
            for name, endpoint in endpoints.items()
        }
        found = alternate(sides, rounds, on_run)
    rates = {side: [burst.images_per_s for burst in bursts] for side, bursts in found.items()}
    return Mixed(
        concurrency=concurrency,
        ratios={
            f"{above} over {below}": ratio_of(rates[above], rates[below])
            for above, below in COMPARED
        },
        sides={side: _figures(bursts, found[PLAIN]) for side, bursts in found.items()},
    )


def _run(
    platform: Platform, endpoint_id: str, jobs: Sequence[Payload], rounds: int, number: int
) -> Burst:
    """Run the jobs of one round; each job is in one of the rounds."""
    first, last = (len(jobs) * each // rounds for each in (number, number + 1))
    return Burst(answers=platform.run(endpoint_id, jobs[first:last]))


def _figures(bursts: Sequence[Burst], plain: Sequence[Burst]) -> SideFigures:
    answers, others = ([a for burst in each for a in burst.answers] for each in (bursts, plain))
    latencies = [answer.latency_s for answer in answers]
    apart = (levels_apart(a.image, b.image) for a, b in zip(answers, others, strict=True))
    return SideFigures(
        jobs=len(answers),
        images_per_s=statistics.median(burst.images_per_s for burst in bursts),
        latency_p50_s=percentile(latencies, 50),
        latency_p95_s=percentile(latencies, 95),
        levels_apart=max(apart),
    )
