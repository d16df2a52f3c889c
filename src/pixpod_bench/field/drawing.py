"""Works to figures: each drawn by a whole engine, as a worker would, one model at a time."""

import asyncio
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch

from pixpod.catalog import load_catalog
from pixpod.engine.engine import DiffusionEngine
from pixpod.errors import WorkerError
from pixpod.job import Generation, GenerationRequest
from pixpod.weights.manifest import MANIFEST, read_manifest
from pixpod_bench.asking import make_request
from pixpod_bench.card_memory import peak_bytes, reset_peak
from pixpod_bench.cold.caches import bake
from pixpod_bench.field.results import Figure, NotMeasured
from pixpod_bench.field.works import Work
from pixpod_bench.figures import spread_percent
from pixpod_bench.whole_engine import ALL_LICENCES, warm_engine

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """How works are drawn. `environ` is the deployment's; models that its weights directory does
    not hold, or all of them if `is_random`, are baked with random weights below `directory`.

    No work is begun after `deadline` (perf_counter). `on_work` is called before each of them.
    """

    environ: Mapping[str, str]
    weights_dir: Path
    device: torch.device
    directory: Path
    is_random: bool
    repeats: int
    deadline: float | None
    on_work: Callable[[Work], None]

    def draw(self, works: Sequence[Work]) -> Iterator[Figure | NotMeasured]:
        """One for each, in their order; works of a model follow each other."""
        for model, group in groupby(works, key=lambda work: work.model):
            yield from self._draw_model(model, tuple(group))

    def _draw_model(self, model: str, works: Sequence[Work]) -> Iterator[Figure | NotMeasured]:
        """A model that cannot be had costs its own works only."""
        left = list(works)
        try:
            if self._is_over():
                raise OutOfTime
            with warm_engine(self._deployment(model, works)) as engine:
                while left:
                    yield self._draw_work(engine, left[0])
                    left.pop(0)
        except (WorkerError, OutOfTime, TimeoutError, OSError) as exc:
            log.warning("not measured: %s: %s", model, exc)
            reason = str(exc) or type(exc).__name__
            yield from (NotMeasured(work=work, reason=reason) for work in left)

    def _deployment(self, model: str, works: Sequence[Work]) -> Mapping[str, str]:
        """The variables of an engine that serves this model alone, warm at these sizes."""
        sizes = dict.fromkeys(f"{work.size_px}x{work.size_px}" for work in works)
        environ = {
            **self.environ,
            "PIXPOD_MODELS": model,
            "PIXPOD_DEVICE": self.device.type,
            "PIXPOD_PRELOAD": "true",
            "PIXPOD_WARMUP_SIZES": ",".join(sizes),
        }
        if self.has_own_weights(model):
            return environ
        folder = self.directory / model
        bake(folder, model)
        return {
            **environ,
            "PIXPOD_WEIGHTS_DIR": str(folder),
            "PIXPOD_ACCEPT_LICENCES": ALL_LICENCES,
        }

    def has_own_weights(self, model: str) -> bool:
        """Whether the deployment's weights are drawn with, and no random ones."""
        is_there = (self.weights_dir / MANIFEST).exists()
        return not self.is_random and is_there and model in read_manifest(self.weights_dir)

    def _draw_work(self, engine: DiffusionEngine, work: Work) -> Figure | NotMeasured:
        self.on_work(work)
        if self._is_over():
            return NotMeasured(work=work, reason="no time was left")
        try:
            asyncio.run(_draw(engine, work, 0))
            reset_peak(self.device)
            drawn = [asyncio.run(_draw(engine, work, 1 + each)) for each in range(self.repeats)]
        except WorkerError as error:
            return NotMeasured(work=work, reason=str(error))
        times = [seconds for seconds, _ in drawn]
        last = drawn[-1][1]
        return Figure(
            work=work,
            weights=last.model.weights if self.has_own_weights(work.model) else "random",
            precision=last.model.precision,
            repeats=self.repeats,
            seconds=statistics.median(times),
            spread_percent=spread_percent(times),
            device_ms=statistics.median(generation.device_ms for _, generation in drawn),
            peak_bytes=peak_bytes(self.device),
            warnings=last.warnings,
        )

    def _is_over(self) -> bool:
        return self.deadline is not None and time.perf_counter() > self.deadline


class OutOfTime(Exception):
    """No time was left."""

    def __str__(self) -> str:
        return "no time was left"


async def _draw(engine: DiffusionEngine, work: Work, number: int) -> tuple[float, Generation]:
    started = time.perf_counter()
    generation = await engine.generate(request_for(work, number))
    return time.perf_counter() - started, generation


def request_for(work: Work, number: int) -> GenerationRequest:
    """Another prompt each time: embeddings of known ones are cached."""
    request = make_request(
        load_catalog()[work.model],
        size_px=work.size_px,
        num_inference_steps=work.steps,
        seeds=tuple(range(work.batch)),
        has_guidance=work.is_guided,
    )
    prompt = f"{request.prompt}, {number}"
    return replace(request, prompt=prompt, scheduler=work.scheduler or request.scheduler)
