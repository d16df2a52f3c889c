"""The worker's own execution of a batch, called directly: no queue, no thread, no offloading."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch._dynamo.utils import counters

from pixpod.engine.adapters.copies import CompileCopy
from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.model_runner import ModelRunner
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.model import LoadedModel
from pixpod.engine.scheduling.batching import BatchItem, ItemResult
from pixpod.errors import WorkerError
from pixpod.job import GenerationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedImages:
    """Images of one batch; the total is from the request to pixels in host memory."""

    text_encode_ms: float
    denoise_ms: float
    decode_ms: float
    total_ms: float
    pixels: tuple[bytes, ...] = field(repr=False)
    warnings: tuple[str, ...] = ()


class LocalRunner:
    """Generates one batch at a time on the calling thread.

    Every component stays on the device and no text embedding is cached. `warnings` returns those
    of preparing the model; they are added to every result. `compile_copy` is as in ModelRunner.
    """

    def __init__(
        self,
        model: LoadedModel,
        warnings: Callable[[], tuple[str, ...]] = tuple,
        *,
        compile_copy: CompileCopy | None = None,
    ) -> None:
        self.model = model
        self._warnings = warnings
        self._runner = ModelRunner(
            Placement(make_plan((), None)), ConditionCache(0), compile_copy=compile_copy
        )

    def generate(self, *requests: GenerationRequest) -> TimedImages:
        """Generate the images of requests as one batch. Raises WorkerError."""
        started = time.perf_counter()
        prepared = [self._runner.prepare(self.model, each).request for each in requests]
        items = [BatchItem(request=each, seeds=each.seeds) for each in prepared]
        results = [
            _or_raise(each) for each in self._runner.execute(self.model, items, lambda step: None)
        ]
        total_ms = (time.perf_counter() - started) * 1e3
        warnings = [warning for result in results for warning in result.warnings]
        timings_ms = results[0].timings_ms
        return TimedImages(
            text_encode_ms=timings_ms["text_encode"],
            denoise_ms=timings_ms["denoise"],
            decode_ms=timings_ms["decode"],
            total_ms=total_ms,
            pixels=tuple(image.pixels.pixels for each in results for image in each.images),
            warnings=tuple(dict.fromkeys((*warnings, *self._warnings()))),
        )


def _or_raise(result: ItemResult | WorkerError) -> ItemResult:
    if isinstance(result, WorkerError):
        raise result
    return result


def count_graphs() -> int:
    """Return how many graphs torch has compiled in this process so far."""
    return int(counters["stats"]["unique_graphs"])
