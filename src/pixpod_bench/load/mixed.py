"""(c) Mixed jobs: a plain worker and ours with batching off and on, each with as many jobs at once,
through the emulator and the real SDK; and our engine without both.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pixpod.engine.base import Engine
from pixpod_bench.figures import percentile
from pixpod_bench.throughput.alone import draw_all, running_engine
from pixpod_bench.throughput.cost import Comparison, compare
from pixpod_bench.throughput.deployment import environ
from pixpod_bench.throughput.endpoints import (
    Platform,
    our_endpoint,
    plain_endpoint,
    running_platform,
)
from pixpod_bench.throughput.figures import in_turns, ratio_of
from pixpod_bench.throughput.mixed_plan import ALONE, ON, PLAIN, Gain, Plan, Side
from pixpod_bench.throughput.pixels import levels_apart
from pixpod_bench.throughput.workload import TinyJob, mixed_jobs
from runpod_emulator.settings import EndpointSettings

WARM_UP_SEED = 1_000_000
"""Of other prompts and other seeds than those that are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFigures:
    """`latency` is from the submission of a job to its end, with all of a round submitted at once;
    `held` from when a worker took it. `levels_apart` is from the plain worker's images.
    """

    side: str
    jobs: int
    images_per_s: float
    rates_by_round: tuple[float, ...]
    latency_p50_s: float
    latency_p95_s: float
    held_p50_s: float | None
    held_p95_s: float | None
    levels_apart: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """`costs` are of our workers of this run, idle while others had their turn."""

    gains: tuple[Gain, ...]
    sides: tuple[SideFigures, ...]
    costs: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    """One round of one side. `held_s` is empty without a platform."""

    wall_s: float
    latency_s: Sequence[float]
    held_s: Sequence[float]
    device_ms: Sequence[float]
    pixels: Sequence[bytes]

    @property
    def rate(self) -> float:
        return len(self.latency_s) / self.wall_s


_Runner = Callable[[Sequence[TinyJob]], _Slice]


def measure_mixed(plan: Plan, on_run: Callable[[], object] = lambda: None) -> Mixed:
    """All workers are started first and warmed up; who is not asked waits and does nothing."""
    jobs = mixed_jobs(plan.jobs)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        on_platform = [side for side in plan.sides() if side.held]
        platform = stack.enter_context(running_platform([*map(_endpoint, on_platform)], folder))
        runners: dict[Side, _Runner] = {
            side: partial(_run_on_platform, platform, side) for side in on_platform
        }
        for is_batching, who in ALONE.items():
            if (side := Side(who=who, held=0)) in plan.sides():
                engine = stack.enter_context(running_engine(environ(is_batching=is_batching)))
                runners[side] = partial(_run_alone, engine)
        warm_ups = {
            side: runner(mixed_jobs(plan.warm_ups, WARM_UP_SEED))
            for side, runner in runners.items()
        }
        turns = {side: partial(_run_slice, plan, runner, jobs) for side, runner in runners.items()}
        found = in_turns(turns, plan.rounds, on_run)
        costs = tuple(
            compare(
                side.name,
                [ms for each in (warm_ups[side], *found[side]) for ms in each.device_ms],
                platform.lives(_id(side)),
                is_active=True,
            )
            for side in on_platform
            if side.who != PLAIN
        )
    rates = {side: [each.rate for each in slices] for side, slices in found.items()}
    return Mixed(
        gains=tuple(
            Gain(
                title=pair.title,
                above=pair.above.name,
                below=pair.below.name,
                ratio=ratio_of(rates[pair.above], rates[pair.below]),
            )
            for pair in plan.pairs()
        ),
        sides=tuple(_figures(side, found, plan) for side in plan.sides()),
        costs=costs,
    )


def _id(side: Side) -> str:
    return side.name.replace(", ", "-").replace(" ", "-")


def _endpoint(side: Side) -> EndpointSettings:
    if side.who == PLAIN:
        return plain_endpoint(_id(side), side.held)
    return our_endpoint(_id(side), side.held, is_batching=side.who == ON)


def _run_slice(plan: Plan, runner: _Runner, jobs: Sequence[TinyJob], number: int) -> _Slice:
    return runner(plan.slice_of(jobs, number))


def _run_on_platform(platform: Platform, side: Side, jobs: Sequence[TinyJob]) -> _Slice:
    answers = platform.run(_id(side), jobs)
    began = min(answer.submitted_at for answer in answers)
    return _Slice(
        wall_s=max(answer.ended_at for answer in answers) - began,
        latency_s=[answer.latency_s for answer in answers],
        held_s=[answer.held_s for answer in answers],
        device_ms=[answer.device_ms for answer in answers if answer.device_ms is not None],
        pixels=[answer.pixels for answer in answers],
    )


def _run_alone(engine: Engine, jobs: Sequence[TinyJob]) -> _Slice:
    drawn = draw_all(engine, jobs)
    latency_s = [each.latency_s for each in drawn]
    return _Slice(
        wall_s=max(each.done_s for each in drawn),
        latency_s=latency_s,
        held_s=(),
        device_ms=[each.generation.device_ms for each in drawn],
        pixels=[each.generation.images[0].pixels for each in drawn],
    )


def _figures(side: Side, found: Mapping[Side, Sequence[_Slice]], plan: Plan) -> SideFigures:
    slices = found[side]
    latency_s = [each for part in slices for each in part.latency_s]
    held_s = [each for part in slices for each in part.held_s]
    pixels = [each for part in slices for each in part.pixels]
    plain = [p for part in found[Side(who=PLAIN, held=plan.held)] for p in part.pixels]
    return SideFigures(
        side=side.name,
        jobs=len(latency_s),
        images_per_s=statistics.median(part.rate for part in slices),
        rates_by_round=tuple(part.rate for part in slices),
        latency_p50_s=percentile(latency_s, 50),
        latency_p95_s=percentile(latency_s, 95),
        held_p50_s=percentile(held_s, 50) if held_s else None,
        held_p95_s=percentile(held_s, 95) if held_s else None,
        levels_apart=max(levels_apart(*each) for each in zip(pixels, plain, strict=True)),
    )
