"""Measure the time that the handler adds to the bare pipeline: the same jobs, in one process."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pixpod_bench.figures import Ratio, alternate, ratio_of
from pixpod_bench.load.jobs import levels_apart, same_size_jobs
from pixpod_bench.load.sides import RunningSide

LIMIT_MS = 5.0
"""Maximum time that the handler may add, apart from encoding."""

JOBS_PER_PAIR = 4
WARM_UPS = 3

_STAGES = ("text_encode", "denoise", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Means of a few jobs of one side in milliseconds."""

    handler_ms: float
    bare_ms: float
    phases_ms: Mapping[str, float]
    levels_apart: int

    @property
    def beside_stages_ms(self) -> float:
        """Time that is not the model's: parsing, queue, threads, encoding, the reply."""
        return self.handler_ms - sum(self.phases_ms[stage] for stage in _STAGES)

    @property
    def added_ms(self) -> float:
        return self.handler_ms - self.bare_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Medians over the pairs; `ratio` is handler over bare pipeline."""

    side: str
    model: str
    ratio: Ratio
    handler_ms: float
    bare_ms: float
    added_ms: float
    beside_encoding_ms: float
    beside_stages_ms: float
    levels_apart: int
    samples: tuple[Sample, ...] = field(repr=False)


def measure_overhead(
    sides: Mapping[str, RunningSide], model: str, pairs: int, on_run: Callable[[], object]
) -> list[Overhead]:
    """Measure each side in turns; every job has a new prompt, so that no embedding is cached."""

    def run(side: RunningSide, number: int) -> Sample:
        jobs = same_size_jobs(model, JOBS_PER_PAIR, seed=number)
        answers = [
            side.order("overhead", job=job, bare_first=bool((position + number) % 2))
            for position, job in enumerate(jobs)
        ]
        return _summary(answers)

    for side in sides.values():
        for job in same_size_jobs(model, WARM_UPS, seed=1_000_000):
            side.order("overhead", job=job, bare_first=True)
    runs = {name: partial(run, side) for name, side in sides.items()}
    found = alternate(runs, pairs, on_run)
    return [_overhead(name, model, samples) for name, samples in found.items()]


def _summary(answers: list[dict[str, Any]]) -> Sample:
    phases = answers[0]["phases_ms"]
    return Sample(
        handler_ms=statistics.mean(answer["handler_ms"] for answer in answers),
        bare_ms=statistics.mean(answer["bare_ms"] for answer in answers),
        phases_ms={
            phase: statistics.mean(answer["phases_ms"][phase] for answer in answers)
            for phase in phases
        },
        levels_apart=max(levels_apart(each["image"], each["bare_image"]) for each in answers),
    )


def _overhead(side: str, model: str, samples: list[Sample]) -> Overhead:
    return Overhead(
        side=side,
        model=model,
        ratio=ratio_of([s.handler_ms for s in samples], [s.bare_ms for s in samples]),
        handler_ms=statistics.median(sample.handler_ms for sample in samples),
        bare_ms=statistics.median(sample.bare_ms for sample in samples),
        added_ms=statistics.median(sample.added_ms for sample in samples),
        beside_encoding_ms=statistics.median(s.added_ms - s.phases_ms["encode"] for s in samples),
        beside_stages_ms=statistics.median(sample.beside_stages_ms for sample in samples),
        levels_apart=max(sample.levels_apart for sample in samples),
        samples=tuple(samples),
    )
