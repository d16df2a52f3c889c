"""(b) What batching alone is worth: jobs of one size, the engine without the SDK."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pixpod_bench.throughput.alone import Drawn, draw_all, running_engine
from pixpod_bench.throughput.deployment import environ
from pixpod_bench.throughput.figures import Ratio, in_turns, ratio_of
from pixpod_bench.throughput.pixels import levels_apart
from pixpod_bench.throughput.workload import same_size_jobs

LEAST_GAIN = 1.8
OFF, ON = "off", "on"


@dataclass(frozen=True, slots=True, kw_only=True)
class SameSize:
    """`gain` is images per second with batching over those without; `device_ms` is of one image."""

    model: str
    jobs: int
    rounds: int
    off_images_per_s: float
    on_images_per_s: float
    gain: Ratio
    off_device_ms: float
    on_device_ms: float
    levels_apart: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    images_per_s: float
    device_ms: float
    images: Sequence[bytes]


def measure_gain(
    model: str, num_jobs: int, rounds: int, on_run: Callable[[], object] = lambda: None
) -> SameSize:
    """Both engines are in this process; who is not asked does nothing."""
    only = {"PIXPOD_MODELS": model}
    with (
        running_engine(environ(is_batching=False, **only)) as off,
        running_engine(environ(is_batching=True, **only)) as on,
    ):
        engines = {OFF: off, ON: on}

        def run(side: str, number: int) -> _Round:
            return _summary(draw_all(engines[side], same_size_jobs(model, num_jobs, seed=number)))

        sides = {side: partial(run, side) for side in engines}
        for warm_up in sides.values():
            warm_up(rounds)
        found = in_turns(sides, rounds, on_run)
    rates = {side: [each.images_per_s for each in found[side]] for side in found}
    return SameSize(
        model=model,
        jobs=num_jobs,
        rounds=rounds,
        off_images_per_s=statistics.median(rates[OFF]),
        on_images_per_s=statistics.median(rates[ON]),
        gain=ratio_of(rates[ON], rates[OFF]),
        off_device_ms=statistics.median(each.device_ms for each in found[OFF]),
        on_device_ms=statistics.median(each.device_ms for each in found[ON]),
        levels_apart=max(
            levels_apart(one, other)
            for left, right in zip(found[OFF], found[ON], strict=True)
            for one, other in zip(left.images, right.images, strict=True)
        ),
    )


def _summary(drawn: Sequence[Drawn]) -> _Round:
    return _Round(
        images_per_s=len(drawn) / max(each.done_s for each in drawn),
        device_ms=statistics.mean(each.generation.device_ms for each in drawn),
        images=[each.generation.images[0].pixels for each in drawn],
    )
