"""DiffusionEngine: real pipelines, loaded once and kept, drawn with by one thread per device.

Imports no torch itself: the device's thread does, so that a worker is up before torch is.
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pixpod.catalog import Catalog, Precision
from pixpod.engine.base import Cancelled, CancelToken
from pixpod.engine.weights import Manifest, check_licence
from pixpod.errors import WorkerError
from pixpod.job import Generation, GenerationRequest
from pixpod.settings import ALL_MODELS
from pixpod.timeline import Timeline

if TYPE_CHECKING:
    import torch

    from pixpod.engine.loading import LoadedModel

log = logging.getLogger(__name__)


class DiffusionEngine:
    """An Engine over diffusers pipelines.

    `precisions` is by model name, ALL_MODELS for the others; empty for the catalog's defaults.
    """

    def __init__(
        self,
        *,
        models: Catalog,
        manifest: Manifest,
        device: str,
        precisions: Mapping[str, Precision],
        accepted_licences: frozenset[str],
        preload: bool,
    ) -> None:
        self._models = models
        self._manifest = manifest
        self._asked_device = device
        self._precisions = precisions
        self._accepted_licences = accepted_licences
        self._preload = preload
        self._boot = Timeline()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._running: set[CancelToken] = set()
        self._loaded: dict[str, LoadedModel] = {}
        self._device_name = "unknown"

    @property
    def device_name(self) -> str:
        return self._device_name

    def boot_ms(self) -> dict[str, float]:
        return self._boot.milliseconds()

    def start(self) -> None:
        if self._preload:
            for name in self._models:
                self._thread.submit(self._preload_model, name)

    async def generate(self, request: GenerationRequest) -> Generation:
        cancel = CancelToken()
        self._running.add(cancel)
        asked_at = time.perf_counter()
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._thread, context.run, self._generate, request, cancel, asked_at
            )
        except asyncio.CancelledError:
            cancel.cancel()
            raise
        except Cancelled as exc:
            raise asyncio.CancelledError from exc
        finally:
            self._running.discard(cancel)

    def stop(self) -> None:
        for cancel in tuple(self._running):
            cancel.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._loaded:
            from pixpod.engine import loading

            self._loaded.clear()
            loading.free_memory()

    # --- on the device's thread ---------------------------------------------------------------

    def _generate(
        self, request: GenerationRequest, cancel: CancelToken, asked_at: float
    ) -> Generation:
        cancel.raise_if_cancelled()
        model = self._get_model(request.model)
        from pixpod.engine.drawing import draw

        queue_ms = (time.perf_counter() - asked_at) * 1e3
        generation = draw(model, request, cancel)
        generation.timings_ms["queue"] = round(queue_ms, 1)
        return generation

    def _preload_model(self, name: str) -> None:
        try:
            self._get_model(name)
        except WorkerError as error:
            log.error("model not loaded", extra={"model": name, "error": str(error)})

    def _get_model(self, name: str) -> "LoadedModel":
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> "LoadedModel":
        spec = self._models[name]
        check_licence(spec, self._accepted_licences)
        weights = self._manifest.get_weights(spec)
        device = self._get_device()
        from pixpod.engine import loading

        asked = self._precisions.get(name, self._precisions.get(ALL_MODELS))
        precision = loading.choose_precision(spec, device, asked)
        with self._boot.phase(f"load_{name}"):
            model = loading.load_model(spec, weights, precision, device)
        log.info("model loaded", extra={"model": name, "precision": precision})
        return model

    def _get_device(self) -> "torch.device":
        with self._boot.phase("import"):
            from pixpod.engine import loading

            loading.silence_libraries()
        with self._boot.phase("device"):
            device = loading.find_device(self._asked_device)
            self._device_name = loading.name_device(device)
        return device
