"""How much of a card two models take while they serve mixed requests."""

import asyncio
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice, product
from types import TracebackType

import torch

from pixpod.catalog import load_catalog
from pixpod.engine.engine import DiffusionEngine
from pixpod.job import Generation, GenerationRequest
from pixpod_bench.asking import make_request
from pixpod_bench.card_memory import (
    allocated_bytes,
    peak_bytes,
    peak_reserved_bytes,
    reserved_bytes,
    reset_peak,
)
from pixpod_bench.results import MemoryRow
from pixpod_bench.scenarios import MemoryScenario
from pixpod_bench.whole_engine import EngineChoice, Home, warm_engine

STEPS = 2
"""Memory does not depend on their number."""

ROWS = (1, 2)
HELD = 8
"""Requests that are asked for at once, so that there is something to batch."""

_LOOK_EVERY_S = 0.02
_SWAP_MS = 1.0


def measure_memory(scenario: MemoryScenario, home: Home) -> MemoryRow:
    """From before the models are loaded to the last request."""
    device = home.device
    choice = EngineChoice(
        home=home,
        precisions=scenario.precisions,
        sizes_px=scenario.sizes_px[:1],
        limit_gib=scenario.limit_gib,
    )
    requests = list(islice(_mixed(scenario), scenario.num_requests))
    with (
        _only(scenario.limit_gib, device),
        CardWatch(device) as watch,
        warm_engine(choice.environ()) as engine,
    ):
        started = time.perf_counter()
        generations = asyncio.run(_ask(engine, requests))
        seconds = time.perf_counter() - started
        end_allocated, end_reserved = allocated_bytes(device), reserved_bytes(device)
    swaps = [generation.timings_ms.get("swap", 0.0) for generation in generations]
    warnings = dict.fromkeys(text for each in generations for text in each.warnings)
    return MemoryRow(
        models=tuple(f"{model} {precision}" for model, precision in scenario.precisions),
        limit_gib=scenario.limit_gib,
        num_requests=len(requests),
        num_images=sum(len(generation.images) for generation in generations),
        seconds=seconds,
        swap_ms=sum(swaps),
        num_swaps=sum(milliseconds > _SWAP_MS for milliseconds in swaps),
        allocated_bytes=peak_bytes(device),
        reserved_bytes=peak_reserved_bytes(device),
        driver_bytes=watch.most_bytes,
        end_allocated_bytes=end_allocated,
        end_reserved_bytes=end_reserved,
        host_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        warnings=tuple(warnings),
    )


def _mixed(scenario: MemoryScenario) -> Iterator[GenerationRequest]:
    """Sizes change faster than models do: each swap is followed by some work."""
    catalog = load_catalog()
    models = [catalog[model] for model, _ in scenario.precisions]
    kinds = cycle(product(models, scenario.sizes_px, ROWS))
    for number, (spec, size_px, rows) in enumerate(kinds):
        seeds = tuple(range(number, number + rows))
        request = make_request(spec, size_px=size_px, num_inference_steps=STEPS, seeds=seeds)
        yield replace(request, prompt=f"{request.prompt}, {number}")


async def _ask(engine: DiffusionEngine, requests: Sequence[GenerationRequest]) -> list[Generation]:
    """All of them, HELD at a time, in their order."""
    slots = asyncio.Semaphore(HELD)

    async def ask(request: GenerationRequest) -> Generation:
        async with slots:
            return await engine.generate(request)

    return list(await asyncio.gather(*map(ask, requests)))


@dataclass(slots=True)
class CardWatch:
    """The most memory of the whole card that its driver showed as used; None on a CPU."""

    device: torch.device
    most_bytes: int | None = None
    _ended: threading.Event | None = None
    _thread: threading.Thread | None = None

    def __enter__(self) -> "CardWatch":
        if self.device.type == "cuda":
            reset_peak(self.device)
            self._ended = threading.Event()
            self._thread = threading.Thread(target=self._watch, args=(self._ended,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ended and self._thread:
            self._ended.set()
            self._thread.join()

    def _watch(self, ended: threading.Event) -> None:
        while True:
            free, total = torch.cuda.mem_get_info(self.device)
            self.most_bytes = max(self.most_bytes or 0, total - free)
            if ended.wait(_LOOK_EVERY_S):
                return


@contextmanager
def _only(limit_gib: float | None, device: torch.device) -> Iterator[None]:
    """Let torch have no more than that of the card, so that a plan that is wrong is found out."""
    if limit_gib is None or device.type != "cuda":
        yield
        return
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gib * 2**30 / total_bytes), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
