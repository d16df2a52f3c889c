"""DiffusionEngine: real pipelines, kept once loaded, drawn with by one thread per device.

Imports no torch itself: that takes seconds, in which a worker can already take its first job.
"""

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

from pixpod.catalog import Catalog, Size
from pixpod.engine.base import Cancelled, CancelToken
from pixpod.engine.model_loader import ModelLoader
from pixpod.engine.warmup import warmup_requests
from pixpod.errors import WorkerError
from pixpod.job import Generation, GenerationRequest
from pixpod.timeline import BootTimeline

if TYPE_CHECKING:
    from pixpod.engine.loading import LoadedModel

log = logging.getLogger(__name__)


class DiffusionEngine:
    """An Engine over diffusers pipelines.

    `preload` loads all models from the start, in their order. `warmup_sizes` are drawn once
    with each loaded model while no job is there; None for each model's default size on a card
    and none on a CPU.
    """

    def __init__(
        self,
        *,
        models: Catalog,
        loader: ModelLoader,
        timeline: BootTimeline,
        preload: bool,
        warmup_sizes: Sequence[Size] | None,
    ) -> None:
        self._models = models
        self._loader = loader
        self._timeline = timeline
        self._preload = preload
        self._warmup_sizes = warmup_sizes
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._running: set[CancelToken] = set()
        self._preloads: tuple[Future[LoadedModel], ...] = ()
        self._cold: deque[tuple[LoadedModel, GenerationRequest]] = deque()
        self._warming: CancelToken | None = None
        self._device_name = "unknown"
        self._has_drawn = False

    @property
    def device_name(self) -> str:
        return self._device_name

    def boot_ms(self) -> dict[str, float]:
        return self._timeline.milliseconds()

    def start(self) -> None:
        if self._preload:
            self._preloads = self._loader.preload(self._models)
            for load in self._preloads:
                load.add_done_callback(self._note_preload)

    def check_host(self) -> None:
        self._loader.check_host()

    async def generate(self, request: GenerationRequest) -> Generation:
        cancel = CancelToken()
        self._running.add(cancel)
        if self._warming:
            self._warming.cancel()
        try:
            return await self._generate(request, cancel)
        except asyncio.CancelledError:
            cancel.cancel()
            raise
        except Cancelled as exc:
            raise asyncio.CancelledError from exc
        finally:
            self._running.discard(cancel)
            self._warm_if_idle()

    def stop(self) -> None:
        self._cold.clear()
        for cancel in tuple(self._running):
            cancel.cancel()
        if self._warming:
            self._warming.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._loader.stop()

    async def _generate(self, request: GenerationRequest, cancel: CancelToken) -> Generation:
        asked_at = time.perf_counter()
        loading = asyncio.wrap_future(self._loader.load(request.model))
        model = await asyncio.shield(loading)  # other jobs wait for the same load
        loaded_at = time.perf_counter()
        context = contextvars.copy_context()
        generation, began_at = await asyncio.get_running_loop().run_in_executor(
            self._thread, context.run, self._draw, model, request, cancel
        )
        self._mark_first_image(request.model)
        generation.timings_ms["load"] = round((loaded_at - asked_at) * 1e3, 1)
        generation.timings_ms["queue"] = round((began_at - loaded_at) * 1e3, 1)
        return generation

    def _mark_first_image(self, name: str) -> None:
        if not self._has_drawn:
            self._has_drawn = True
            self._timeline.mark("first_image", name)
            self._log_boot()

    def _log_boot(self) -> None:
        spans = (*self._timeline.spans(), *self._loader.reading())
        log.info("boot timeline", extra={"spans": [asdict(span) for span in spans]})

    # --- on the device's thread ---------------------------------------------------------------

    def _draw(
        self, model: "LoadedModel", request: GenerationRequest, cancel: CancelToken
    ) -> tuple[Generation, float]:
        """The images, and when drawing began."""
        from pixpod.engine.drawing import draw
        from pixpod.engine.loading import name_device

        cancel.raise_if_cancelled()
        self._device_name = name_device(model.device)
        began_at = time.perf_counter()
        return draw(model, request, cancel), began_at

    def _note_preload(self, load: "Future[LoadedModel]") -> None:
        """Called once a preloaded model is there, or cannot be, by the thread that loaded it."""
        if all(each.done() for each in self._preloads):
            self._log_boot()
        if load.cancelled() or load.exception():
            return
        model = load.result()
        sizes = self._warmup_sizes
        if sizes is None:
            defaults = model.spec.defaults
            sizes = [(defaults.width, defaults.height)] if model.device.type == "cuda" else []
        self._cold.extend((model, request) for request in warmup_requests(model.spec, sizes))
        self._warm_if_idle()

    def _warm_if_idle(self) -> None:
        if self._cold and not self._running:
            self._thread.submit(self._warm).add_done_callback(_log_unexpected)

    def _warm(self) -> None:
        """Draw what is cold until a job comes; what that interrupts is drawn again later."""
        while self._cold:
            self._warming = cancel = CancelToken()
            if self._running:  # looked at after a job could see the token
                break
            model, request = self._cold.popleft()
            try:
                with self._timeline.span("warm", request.model):
                    self._draw(model, request, cancel)
            except Cancelled:
                self._cold.appendleft((model, request))
            except WorkerError as error:
                log.warning("not warmed up", extra={"model": request.model, "error": str(error)})
        self._warming = None


def _log_unexpected(warming: "Future[None]") -> None:
    """A warm-up that fails costs nothing but the warmth; its traceback must be seen."""
    if not warming.cancelled() and warming.exception():
        log.error("warm-up failed unexpectedly", exc_info=warming.exception())
