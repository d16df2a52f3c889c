"""DiffusionEngine: real pipelines, kept once loaded, drawn with by one thread per device.

Imports no torch itself: that takes seconds, in which a worker can already take its first job.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import TYPE_CHECKING

from pixpod.catalog import Catalog, Size
from pixpod.engine.base import Cancelled, CancelToken, StepListener
from pixpod.engine.loading.loader import ModelLoader
from pixpod.engine.scheduling.batching import GroupKey, bucket, most_rows
from pixpod.engine.scheduling.request_queue import DeviceQueue, Drawn, OnStep, Part
from pixpod.engine.scheduling.warmup import warmup_requests
from pixpod.errors import WorkerError
from pixpod.job import Generation, GenerationRequest
from pixpod.timeline import BootTimeline

if TYPE_CHECKING:
    from pixpod.engine.execution.model_runner import Drawer
    from pixpod.engine.loading.pipelines import LoadedModel

log = logging.getLogger(__name__)


class DiffusionEngine:
    """An Engine over diffusers pipelines.

    `preload` loads all models from the start, in their order. `warmup_sizes` are drawn once
    with each loaded model while no job is there; None for each model's default size on a card
    and none on a CPU. Without `is_batching` every image has a batch of its own. `build_drawer`
    is called by the device's thread, once a model is loaded.
    """

    def __init__(
        self,
        *,
        models: Catalog,
        loader: ModelLoader,
        build_drawer: "Callable[[], Drawer]",
        timeline: BootTimeline,
        preload: bool,
        warmup_sizes: Sequence[Size] | None,
        is_batching: bool,
    ) -> None:
        self._models = models
        self._loader = loader
        self._build_drawer = build_drawer
        self._timeline = timeline
        self._preload = preload
        self._warmup_sizes = warmup_sizes
        self._is_batching = is_batching
        self._drawer: Drawer | None = None
        self._queue: DeviceQueue[LoadedModel] = DeviceQueue(self._draw, self._row_limit)
        self._preloads: tuple[Future[LoadedModel], ...] = ()
        self._noted: set[Future[LoadedModel]] = set()
        self._device_name = "unknown"
        self._has_drawn = False

    @property
    def device_name(self) -> str:
        return self._device_name

    @property
    def is_warm(self) -> bool:
        has_begun = bool(self._preloads) or self._has_drawn
        return has_begun and self._noted >= {*self._preloads} and self._queue.is_warm

    def device_bytes(self) -> int | None:
        """What torch holds of a card's memory; None on a CPU and before anything was drawn."""
        if self._drawer is None:
            return None
        from pixpod.engine.device import reserved_bytes

        return reserved_bytes()

    def boot_ms(self) -> dict[str, float]:
        return self._timeline.milliseconds()

    def start(self) -> None:
        if self._preload:
            self._preloads = self._loader.preload(self._models)
            for load in self._preloads:
                load.add_done_callback(self._note_preload)

    def check_host(self) -> None:
        self._loader.check_host()

    async def generate(
        self, request: GenerationRequest, on_step: StepListener | None = None
    ) -> Generation:
        cancel = CancelToken()
        asked_at = time.perf_counter()
        loading = asyncio.wrap_future(self._loader.load(request.model, request.quality))
        model = await asyncio.shield(loading)  # other jobs wait for the same load
        load_ms = (time.perf_counter() - asked_at) * 1e3
        drawing = self._queue.submit(model, model.identity, request, cancel=cancel, on_step=on_step)
        try:
            generation = await asyncio.wrap_future(drawing)
        except Cancelled as exc:
            raise asyncio.CancelledError from exc
        finally:
            cancel.cancel()
            self._queue.forget_cancelled()
        generation.timings_ms["load"] = round(load_ms, 1)
        return generation

    def stop(self) -> None:
        self._queue.stop()
        self._loader.stop()

    def _row_limit(self, key: GroupKey) -> int:
        """Called with the keys of requests whose model is loaded."""
        if not self._is_batching:
            return 1
        num_rows = most_rows(self._models[key.model].family, key)
        plan = self._loader.placement.plan
        return bucket(plan.rows_that_fit(key.model, (key.width, key.height), num_rows))

    def _log_boot(self) -> None:
        spans = (*self._timeline.spans(), *self._loader.reading())
        log.info("boot timeline", extra={"spans": [asdict(span) for span in spans]})

    def _note_preload(self, load: "Future[LoadedModel]") -> None:
        """Called once a preloaded model is there, or cannot be, by the thread that loaded it."""
        if not load.cancelled() and not load.exception():
            self._warm_up(load.result())
        self._noted.add(load)  # only now: what is to be warmed up waits in the queue
        if all(each.done() for each in self._preloads):
            self._log_boot()

    def _warm_up(self, model: "LoadedModel") -> None:
        sizes = self._warmup_sizes
        if sizes is None:
            defaults = model.spec.defaults
            sizes = [(defaults.width, defaults.height)] if model.device.type == "cuda" else []
        for request in warmup_requests(model.spec, sizes, self._row_limit):
            self._queue.submit(
                model, model.identity, request, cancel=CancelToken(), is_warmup=True
            ).add_done_callback(_log_failure)

    # --- on the device's thread ---------------------------------------------------------------

    def _draw(
        self, model: "LoadedModel", parts: Sequence[Part], on_step: OnStep
    ) -> "list[Drawn | WorkerError]":
        from pixpod.engine.device import check_device, name_device

        self._drawer = self._drawer or self._build_drawer()
        self._device_name = name_device(model.device)
        if parts[0].is_warmup:
            with self._timeline.span("warm", model.spec.name):
                return self._drawer.draw(model, parts, on_step)
        try:
            drawn = self._drawer.draw(model, parts, on_step)
        except RuntimeError:  # of torch: WorkerErrors are none
            check_device(model.device)  # else it would fail job after job
            raise
        if not self._has_drawn:
            self._has_drawn = True
            self._timeline.mark("first_image", model.spec.name)
            self._log_boot()
        return drawn


def _log_failure(warming: "Future[Generation]") -> None:
    """A warm-up that fails costs nothing but the warmth; what nobody foresaw must be seen."""
    error = warming.exception()
    if isinstance(error, WorkerError):
        log.warning("not warmed up", extra={"error": str(error)})
    elif error is not None and not isinstance(error, Cancelled):
        log.error("warm-up failed unexpectedly", exc_info=error)
