"""An open loop: requests of mixed kinds that come at random times, whether or not the engine is
done with those before.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

from pixpod.catalog import load_catalog
from pixpod.engine.engine import DiffusionEngine
from pixpod.job import GenerationRequest
from pixpod_bench.arrivals import SEED, Served, arrivals, summarize
from pixpod_bench.asking import make_request
from pixpod_bench.results import LoadPoint, LoadRow
from pixpod_bench.scenarios import LoadScenario
from pixpod_bench.whole_engine import EngineChoice, Home, warm_engine


def measure_load(scenario: LoadScenario, home: Home) -> LoadRow:
    """First one by one and without batching, which gives the rates that both are asked for at."""
    requests = _requests(scenario)
    points: list[LoadPoint] = []
    capacity_per_s = 0.0
    for is_batching in (False, True):
        choice = EngineChoice(
            home=home,
            precisions=scenario.precisions,
            sizes_px=sorted({size_px for _, size_px, _ in scenario.kinds}),
            is_batching=is_batching,
        )
        with warm_engine(choice.environ()) as engine:
            if not is_batching:
                rounds = [_one_of_each(scenario, number) for number in (0, 1)]
                capacity_per_s = asyncio.run(_one_by_one(engine, *rounds))
            for load in scenario.loads:
                served = asyncio.run(_serve(engine, requests, load * capacity_per_s))
                points.append(summarize(served, is_batching=is_batching, load=load))
    return LoadRow(num_requests=len(requests), capacity_per_s=capacity_per_s, points=tuple(points))


def _requests(scenario: LoadScenario) -> list[GenerationRequest]:
    """Kinds in turns, then shuffled; prompts and seeds of their own."""
    kinds = list(islice(cycle(scenario.kinds), scenario.num_requests))
    random.Random(SEED).shuffle(kinds)  # noqa: S311 - no secret
    return [_request(*kind, number) for number, kind in enumerate(kinds)]


def _one_of_each(scenario: LoadScenario, round_number: int) -> list[GenerationRequest]:
    """With prompts that no other round has: embeddings are cached."""
    first = 1_000_000 * (1 + round_number)
    return [_request(*kind, first + number) for number, kind in enumerate(scenario.kinds)]


def _request(model: str, size_px: int, steps: int, number: int) -> GenerationRequest:
    spec = load_catalog()[model]
    request = make_request(spec, size_px=size_px, num_inference_steps=steps, seeds=(number,))
    return replace(request, prompt=f"{request.prompt}, {number}")


async def _one_by_one(
    engine: DiffusionEngine,
    warmups: Sequence[GenerationRequest],
    requests: Sequence[GenerationRequest],
) -> float:
    """Requests per second."""
    for request in warmups:
        await engine.generate(request)
    started = time.perf_counter()
    for request in requests:
        await engine.generate(request)
    return len(requests) / (time.perf_counter() - started)


async def _serve(
    engine: DiffusionEngine, requests: Sequence[GenerationRequest], rate_per_s: float
) -> list[Served]:
    started = time.perf_counter()

    async def ask(request: GenerationRequest, at_s: float) -> Served:
        await asyncio.sleep(at_s)
        generation = await engine.generate(request)
        return Served(
            came_s=at_s,
            done_s=time.perf_counter() - started,
            device_s=generation.device_ms / 1e3,
            num_images=len(generation.images),
        )

    times = arrivals(rate_per_s, len(requests))
    return list(await asyncio.gather(*(ask(*pair) for pair in zip(requests, times, strict=True))))
