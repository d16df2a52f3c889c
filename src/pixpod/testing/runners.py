"""The worker's own execution of a batch, called directly: no queue, no thread, no offloading."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch._dynamo.utils import counters

from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.model_runner import ModelRunner
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.model import LoadedModel
from pixpod.engine.scheduling.batching import BatchItem
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
    """Generates one request at a time on the calling thread.

    Every component stays on the device and no text embedding is cached. `warnings` returns those
    of preparing the model; they are added to every result.
    """

    def __init__(self, model: LoadedModel, warnings: Callable[[], tuple[str, ...]] = tuple) -> None:
        self.model = model
        self._warnings = warnings
        self._runner = ModelRunner(Placement(make_plan((), None)), ConditionCache(0))

    def generate(self, request: GenerationRequest) -> TimedImages:
        """Generate the images of a request. Raises WorkerError."""
        started = time.perf_counter()
        item = BatchItem(request=request, seeds=request.seeds)
        (result,) = self._runner.execute(self.model, [item], lambda step: None)
        total_ms = (time.perf_counter() - started) * 1e3
        if isinstance(result, WorkerError):
            raise result
        return TimedImages(
            text_encode_ms=result.timings_ms["text_encode"],
            denoise_ms=result.timings_ms["denoise"],
            decode_ms=result.timings_ms["decode"],
            total_ms=total_ms,
            pixels=tuple(image.pixels.pixels for image in result.images),
            warnings=tuple(dict.fromkeys((*result.warnings, *self._warnings()))),
        )


def count_graphs() -> int:
    """Return how many graphs torch has compiled in this process so far."""
    return int(counters["stats"]["unique_graphs"])
