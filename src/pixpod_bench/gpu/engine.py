"""Measures whole engines: memory during mixed requests, and an open loop of requests.

Stock pipelines do the same work in the same process, one request after the other.
"""

import asyncio
import gc
import random
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, cycle, islice, product

import torch

from pixpod.catalog import load_catalog
from pixpod.engine.base import Engine
from pixpod.families import Precision
from pixpod.job import Generation, GenerationRequest
from pixpod.testing.engines import warm_engine
from pixpod.testing.sample_requests import PROMPT, make_request
from pixpod_bench.gpu.memory import (
    limited_to,
    peak_bytes,
    peak_reserved_bytes,
    reserved_bytes,
    reset_peak,
    synchronize,
    watching_driver,
)
from pixpod_bench.gpu.results import LoadPoint, LoadRow, MemoryRow
from pixpod_bench.gpu.scenarios import Kind, LoadScenario, MemoryScenario, Served
from pixpod_bench.gpu.stock import StockRunner
from pixpod_bench.gpu.subjects import build_model
from pixpod_bench.gpu.workload import SEED, AnsweredRequest, Deployment, arrivals, summarize

MEMORY_STEPS = 2
"""Steps of each request: memory does not depend on their number."""

MEMORY_BATCH_SIZES = (1, 2)
MEMORY_CONCURRENCY = 8
"""Requests that are submitted at once, so that there is something to batch."""

_ONLOAD, _ONLOAD_MS = "onload", 1.0
"""The phase of moving components to the GPU, and its least duration to be counted."""


# --- memory ---------------------------------------------------------------------------------------


def measure_memory(scenario: MemoryScenario, given: Deployment) -> MemoryRow:
    """Measure memory from before the models are loaded to the last request."""
    device = torch.device(given.device)
    deployment = replace(given, sizes_px=scenario.sizes_px[:1], limit_gib=scenario.limit_gib)
    requests = list(islice(_mixed(scenario), scenario.num_requests))
    with (
        limited_to(scenario.limit_gib, device),
        watching_driver(device) as driver,
        warm_engine(deployment.environ()) as engine,
    ):
        started = time.perf_counter()
        generations = asyncio.run(_generate_all(engine, requests))
        seconds = time.perf_counter() - started
        allocated, reserved = peak_bytes(device), peak_reserved_bytes(device)
        end_reserved = reserved_bytes(device)
    del engine
    onloads = [generation.timings_ms.get(_ONLOAD, 0) for generation in generations]
    warnings = dict.fromkeys(text for each in generations for text in each.warnings)
    kinds = [(model, scenario.sizes_px[0], MEMORY_STEPS) for model, _ in scenario.served]
    is_room_for_stock = scenario.limit_gib is None
    return MemoryRow(
        models=tuple(f"{model} {precision}" for model, precision in scenario.served),
        limit_gib=scenario.limit_gib,
        num_requests=len(requests),
        num_images=sum(len(generation.images) for generation in generations),
        seconds=seconds,
        onload_ms=sum(onloads),
        num_onloads=sum(milliseconds > _ONLOAD_MS for milliseconds in onloads),
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        driver_bytes=driver.peak_bytes,
        end_reserved_bytes=end_reserved,
        host_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        stock_bytes=Stock(scenario.served, torch.device(given.device)).run(kinds)[1]
        if is_room_for_stock
        else None,
        warnings=tuple(warnings),
    )


def _mixed(scenario: MemoryScenario) -> Iterator[GenerationRequest]:
    """Yield requests in which sizes change faster than models, so that work follows each onload."""
    models = [model for model, _ in scenario.served]
    kinds = cycle(product(models, scenario.sizes_px, MEMORY_BATCH_SIZES))
    for number, (model, size_px, batch_size) in enumerate(kinds):
        yield _request((model, size_px, MEMORY_STEPS), number, batch_size)


async def _generate_all(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Generation]:
    slots = asyncio.Semaphore(MEMORY_CONCURRENCY)

    async def generate(request: GenerationRequest) -> Generation:
        async with slots:
            return await engine.generate(request)

    return list(await asyncio.gather(*map(generate, requests)))


# --- mixed load -----------------------------------------------------------------------------------


def measure_load(scenario: LoadScenario, given: Deployment) -> LoadRow:
    """Measure without batching first: its capacity one by one sets the rates of both."""
    requests = _shuffled(scenario)
    points: list[LoadPoint] = []
    capacity_per_s = 0.0
    for is_batching in (False, True):
        sizes_px = sorted({size_px for _, size_px, _ in scenario.kinds})
        deployment = replace(given, sizes_px=sizes_px, is_batching=is_batching)
        with warm_engine(deployment.environ()) as engine:
            if not is_batching:
                capacity_per_s = asyncio.run(_one_by_one(engine, scenario.kinds))
            for load in scenario.loads:
                served = asyncio.run(_serve(engine, requests, load * capacity_per_s))
                points.append(summarize(served, is_batching=is_batching, load=load))
        del engine
    stock = Stock(scenario.served, torch.device(given.device))
    stock.run(scenario.kinds)
    return LoadRow(
        num_requests=len(requests),
        capacity_per_s=capacity_per_s,
        stock_capacity_per_s=len(scenario.kinds) / stock.run(scenario.kinds)[0],
        points=tuple(points),
    )


def _shuffled(scenario: LoadScenario) -> list[GenerationRequest]:
    kinds = list(islice(cycle(scenario.kinds), scenario.num_requests))
    random.Random(SEED).shuffle(kinds)  # noqa: S311 - no secret
    return [_request(kind, number) for number, kind in enumerate(kinds)]


async def _one_by_one(engine: Engine, kinds: Sequence[Kind]) -> float:
    """Return requests per second, after a round that warms every kind up."""
    numbers = count(1_000_000)  # prompts that no other request has: embeddings are cached
    for _ in range(2):
        started = time.perf_counter()
        for kind in kinds:
            await engine.generate(_request(kind, next(numbers)))
    return len(kinds) / (time.perf_counter() - started)


async def _serve(
    engine: Engine, requests: Sequence[GenerationRequest], rate_per_s: float
) -> list[AnsweredRequest]:
    started = time.perf_counter()

    async def generate(request: GenerationRequest, at_s: float) -> AnsweredRequest:
        await asyncio.sleep(at_s)
        generation = await engine.generate(request)
        return AnsweredRequest(
            arrived_s=at_s,
            done_s=time.perf_counter() - started,
            device_s=generation.device_ms / 1e3,
            num_images=len(generation.images),
        )

    times = arrivals(rate_per_s, len(requests))
    return list(await asyncio.gather(*map(generate, requests, times)))


def _request(kind: Kind, number: int, batch_size: int = 1) -> GenerationRequest:
    """Return a request with its own prompt and seeds."""
    model, size_px, steps = kind
    return make_request(
        load_catalog()[model],
        size_px=size_px,
        num_inference_steps=steps,
        prompt=f"{PROMPT}, {number}",
        seeds=tuple(range(number, number + batch_size)),
    )


# --- stock diffusers ------------------------------------------------------------------------------


class Stock:
    """Eager stock pipelines of all served models, on the device at once; bfloat16 for 8 bits."""

    def __init__(self, served: Served, device: torch.device) -> None:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        reset_peak(device)
        self._device = device
        self._runners = {
            model: StockRunner(
                build_model(model, Precision.BFLOAT16 if each.is_8_bit else each, device)
            )
            for model, each in served
        }

    def run(self, kinds: Sequence[Kind]) -> tuple[float, int | None]:
        """Return the seconds for one image of each kind, and the most memory until now."""
        started = time.perf_counter()
        for number, kind in enumerate(kinds):
            self._runners[kind[0]].generate(_request(kind, number))
        synchronize(self._device)
        return time.perf_counter() - started, peak_bytes(self._device)
