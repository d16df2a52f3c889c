"""Our engine without SDK and handler: many requests at once, as it would get them at best."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pixpod.bootstrap import build_engine
from pixpod.engine.base import Engine
from pixpod.job import Generation
from pixpod.settings import Settings
from pixpod_bench.throughput.workload import TinyJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One job's image, how long after its submission it was there, and after the first one's."""

    job: TinyJob
    latency_s: float
    done_s: float
    generation: Generation


@contextmanager
def running_engine(environ: Mapping[str, str]) -> Iterator[Engine]:
    engine = build_engine(Settings.from_env(environ))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def draw_all(engine: Engine, jobs: Sequence[TinyJob], *, at_once: int | None = None) -> list[Drawn]:
    """From an event loop of their own; `at_once` at a time, None for all of them."""
    return asyncio.run(_draw_all(engine, jobs, at_once or len(jobs)))


async def _draw_all(engine: Engine, jobs: Sequence[TinyJob], at_once: int) -> list[Drawn]:
    began, places = time.perf_counter(), asyncio.Semaphore(at_once)

    async def draw(job: TinyJob) -> Drawn:
        async with places:
            submitted = time.perf_counter()
            generation = await engine.generate(job.request())
            done = time.perf_counter()
        return Drawn(
            job=job, latency_s=done - submitted, done_s=done - began, generation=generation
        )

    return list(await asyncio.gather(*(draw(job) for job in jobs)))
