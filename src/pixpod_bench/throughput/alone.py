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
    """One job's image and how long after all were submitted it was there."""

    job: TinyJob
    latency_s: float
    generation: Generation


@contextmanager
def running_engine(environ: Mapping[str, str]) -> Iterator[Engine]:
    engine = build_engine(Settings.from_env(environ))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def draw_all(engine: Engine, jobs: Sequence[TinyJob]) -> list[Drawn]:
    """All submitted at once, from an event loop of their own."""
    return asyncio.run(_draw_all(engine, jobs))


async def _draw_all(engine: Engine, jobs: Sequence[TinyJob]) -> list[Drawn]:
    began = time.perf_counter()

    async def draw(job: TinyJob) -> Drawn:
        generation = await engine.generate(job.request())
        return Drawn(job=job, latency_s=time.perf_counter() - began, generation=generation)

    return list(await asyncio.gather(*(draw(job) for job in jobs)))
