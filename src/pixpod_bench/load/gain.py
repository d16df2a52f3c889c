"""Measure the gain of batching: jobs of one size, all at once, with batching and without."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from pixpod_bench.figures import Ratio, alternate, ratio_of
from pixpod_bench.load.jobs import levels_apart, same_size_jobs
from pixpod_bench.load.sides import RunningSide

LEAST_GAIN = 1.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Times in seconds of the same burst without batching and with it."""

    off_s: float
    on_s: float
    levels_apart: int

    @property
    def gain(self) -> float:
        return self.off_s / self.on_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """The gain of batching. `ratio` is images per second with batching over those without."""

    side: str
    model: str
    jobs: int
    ratio: Ratio
    off_images_per_s: float
    on_images_per_s: float
    levels_apart: int
    samples: tuple[Sample, ...] = field(repr=False)


def measure_gain(
    sides: Mapping[str, RunningSide],
    model: str,
    num_jobs: int,
    pairs: int,
    on_run: Callable[[], object],
) -> list[Gain]:
    def run(side: RunningSide, number: int) -> Sample:
        jobs = same_size_jobs(model, num_jobs, seed=number)
        order = (False, True) if number % 2 else (True, False)
        found = {on: side.order("burst", jobs=jobs, is_batching=on) for on in order}
        apart = map(levels_apart, found[False]["images"], found[True]["images"])
        return Sample(
            off_s=found[False]["seconds"], on_s=found[True]["seconds"], levels_apart=max(apart)
        )

    for side in sides.values():
        run(side, 1_000_000)
    runs = {name: partial(run, side) for name, side in sides.items()}
    found = alternate(runs, pairs, on_run)
    return [_gain(name, model, num_jobs, samples) for name, samples in found.items()]


def _gain(side: str, model: str, num_jobs: int, samples: list[Sample]) -> Gain:
    return Gain(
        side=side,
        model=model,
        jobs=num_jobs,
        ratio=ratio_of([sample.off_s for sample in samples], [sample.on_s for sample in samples]),
        off_images_per_s=num_jobs / statistics.median(sample.off_s for sample in samples),
        on_images_per_s=num_jobs / statistics.median(sample.on_s for sample in samples),
        levels_apart=max(sample.levels_apart for sample in samples),
        samples=tuple(samples),
    )
