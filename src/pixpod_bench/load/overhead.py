"""(a) What our handler adds to the bare pipeline: the same request, in one process, in turns.

Imports no torch until it measures, when the number of its threads is set.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixpod.bootstrap import build_worker
from pixpod.serving.worker import PHASES, Worker
from pixpod.settings import Settings
from pixpod_bench.throughput.deployment import environ
from pixpod_bench.throughput.figures import Ratio, ratio_of
from pixpod_bench.throughput.pixels import decode, levels_apart
from pixpod_bench.throughput.workload import JobFailed, TinyJob, same_size_jobs

if TYPE_CHECKING:
    from pixpod_bench.throughput.bare import BarePipeline

LIMIT_MS = 5.0
"""Of what is added beside encoding."""

WARM_UPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Medians in milliseconds. `added_ms` is of handler minus bare pipeline, pair by pair;
    `beside_encoding_ms` of the same without the phase `encode`. `between_ms` is what the handler's
    phases leave of its total: checks, threads, and the reply.
    """

    model: str
    pairs: int
    bare_ms: float
    handler_ms: float
    ratio: Ratio
    added_ms: float
    beside_encoding_ms: float
    between_ms: float
    phases_ms: Mapping[str, float]
    levels_apart: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    bare_ms: float
    handler_ms: float
    phases_ms: Mapping[str, float]
    levels_apart: int

    @property
    def added_ms(self) -> float:
        return self.handler_ms - self.bare_ms


def measure_overhead(model: str, pairs: int, on_pair: Callable[[], object]) -> Overhead:
    """Every pair has a prompt of its own, so that no embedding is there already."""
    return asyncio.run(_measure(model, pairs, on_pair))


async def _measure(model: str, pairs: int, on_pair: Callable[[], object]) -> Overhead:
    from pixpod_bench.throughput.bare import BarePipeline

    settings = Settings.from_env(environ(PIXPOD_MODELS=model))
    bare = BarePipeline(model)
    found = []
    async with build_worker(settings) as worker:
        for number, job in enumerate(same_size_jobs(model, WARM_UPS + pairs)):
            pair = await _pair(worker, bare, job, bare_first=number % 2 == 0)
            if number >= WARM_UPS:
                found.append(pair)
                on_pair()
    phases_ms = {
        phase: statistics.median(pair.phases_ms[phase] for pair in found) for phase in PHASES
    }
    named = [phase for phase in PHASES if phase != "total"]
    return Overhead(
        model=model,
        pairs=pairs,
        bare_ms=statistics.median(pair.bare_ms for pair in found),
        handler_ms=statistics.median(pair.handler_ms for pair in found),
        ratio=ratio_of([p.handler_ms for p in found], [p.bare_ms for p in found]),
        added_ms=statistics.median(pair.added_ms for pair in found),
        beside_encoding_ms=statistics.median(p.added_ms - p.phases_ms["encode"] for p in found),
        between_ms=statistics.median(
            pair.handler_ms - sum(pair.phases_ms[phase] for phase in named) for pair in found
        ),
        phases_ms=phases_ms,
        levels_apart=max(pair.levels_apart for pair in found),
    )


async def _pair(worker: Worker, bare: "BarePipeline", job: TinyJob, *, bare_first: bool) -> _Pair:
    if bare_first:
        bare_ms, bare_pixels = bare.draw(job)
    began = time.perf_counter()
    reply = await worker.handle({"id": f"job-{job.seed}", "input": job.payload()})
    handler_ms = (time.perf_counter() - began) * 1e3
    if "error" in reply:
        raise JobFailed(reply["error"])
    if not bare_first:
        bare_ms, bare_pixels = bare.draw(job)
    return _Pair(
        bare_ms=bare_ms,
        handler_ms=handler_ms,
        phases_ms=reply["timings_ms"],
        levels_apart=levels_apart(decode(reply["images"][0]["data"]), bare_pixels),
    )
