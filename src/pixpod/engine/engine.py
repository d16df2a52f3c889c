"""DiffusionEngine: loads models, queues requests, and executes them on one thread per device.

Imports no torch itself: that takes seconds, in which a worker can already take its first job.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from pixpod.catalog import Catalog, Size
from pixpod.engine.base import Cancelled, StepListener
from pixpod.engine.loading.loader import HostFaultListener, ModelLoader
from pixpod.engine.scheduling.device_watch import RETURN_LIMIT_S, DeviceWatch
from pixpod.engine.scheduling.request_queue import RequestQueue
from pixpod.engine.scheduling.warmup import stack_warmups, warmup_requests
from pixpod.errors import DeviceUnavailable, WorkerError
from pixpod.extras import Extras
from pixpod.job import Generation, GenerationRequest
from pixpod.methods import extras_of
from pixpod.stacks import Stack
from pixpod.timeline import BootTimeline

if TYPE_CHECKING:
    from pixpod.engine.execution.runnable_model import RunnableModel

log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class DiffusionEngine:
    """An Engine over diffusers pipelines.

    `preload` loads all models from the start, in their order, and the extras of `stacks` after
    their models. Each loaded model and stack generates images of `warmup_sizes` once while no job
    waits; None for each model's default size on a GPU and none on a CPU. `extras` are those that
    requests may name. Without `is_batching` every image has a batch of its own. `on_host_fault` is
    called if the GPU does not return within about `return_limit_s` of its job's end.
    """

    models: Catalog
    loader: ModelLoader
    timeline: BootTimeline
    preload: bool
    warmup_sizes: Sequence[Size] | None
    is_batching: bool
    on_host_fault: HostFaultListener
    extras: Extras = field(default_factory=dict)
    stacks: Sequence[Stack] = ()
    return_limit_s: float = RETURN_LIMIT_S

    def __post_init__(self) -> None:
        watch = DeviceWatch(self._report_stuck, limit_s=self.return_limit_s)
        self._queue = RequestQueue(watch=watch, is_batching=self.is_batching)
        self._preloads: tuple[Future[RunnableModel], ...] = ()
        self._handled: set[Future[RunnableModel]] = set()
        self._stack_loads: set[Stack] = set()
        self._has_generated = False

    @property
    def device_name(self) -> str:
        return self.loader.device_name

    @property
    def is_warm(self) -> bool:
        has_begun = bool(self._preloads) or self._has_generated
        is_loaded = self._handled >= {*self._preloads} and not self._stack_loads
        return has_begun and is_loaded and self._queue.is_warm

    def boot_ms(self) -> dict[str, float]:
        return self.timeline.milliseconds()

    def start(self) -> None:
        if self.preload:
            self._preloads = self.loader.preload(self.models)
            for load in self._preloads:
                load.add_done_callback(self._handle_preload)

    def check_host(self) -> None:
        self.loader.check_host()

    async def generate(
        self, request: GenerationRequest, on_step: StepListener | None = None
    ) -> Generation:
        cancel = threading.Event()
        started = time.perf_counter()
        loading = asyncio.wrap_future(self.loader.load(request.model, request.quality))
        model = await asyncio.shield(loading)  # other jobs wait for the same load
        for name in extras_of(model.loaded.spec, request):
            extra = asyncio.wrap_future(self.loader.load_extra(model, name))
            await asyncio.shield(extra)
        load_ms = (time.perf_counter() - started) * 1e3
        prepared = None
        if request.needs_preparation:
            prepared = await asyncio.to_thread(model.prepare, request)
            request = prepared.request
        execution = self._queue.submit(model, request, cancel=cancel, on_step=on_step)
        try:
            generation = await asyncio.wrap_future(execution)
        except Cancelled as exc:
            raise asyncio.CancelledError from exc
        finally:
            cancel.set()
            self._queue.forget_cancelled()
        if not self._has_generated:
            self._has_generated = True
            self.timeline.mark("first_image", request.model)
            self._log_boot()
        timings_ms = {"load": round(load_ms, 1), **generation.timings_ms}
        if prepared is None:
            return replace(generation, timings_ms=timings_ms)
        for phase, milliseconds in prepared.timings_ms.items():
            timings_ms[phase] = round(timings_ms.get(phase, 0.0) + milliseconds, 1)
        return replace(generation, timings_ms=timings_ms, adapters=prepared.adapters)

    def stop(self) -> None:
        self._queue.stop()
        self.loader.stop()

    def _log_boot(self) -> None:
        spans = (*self.timeline.spans(), *self.loader.reading())
        log.info("boot timeline", extra={"spans": [asdict(span) for span in spans]})

    # --- on the thread of the watch -------------------------------------------------------------

    def _report_stuck(self, waited_s: float) -> None:
        """Report a GPU that hangs. A CPU only takes long."""
        if self.device_name == "cpu":
            return
        self.on_host_fault(
            DeviceUnavailable(f"the GPU has not returned {waited_s:.0f} s after its job was ended")
        )

    # --- on the thread that loaded a model ------------------------------------------------------

    def _handle_preload(self, load: "Future[RunnableModel]") -> None:
        """Warm up a preloaded model if it was loaded; log the timeline after the last model."""
        if not load.cancelled() and not load.exception():
            self._warm_up(load.result())
            self._load_stacks(load.result())
        self._handled.add(load)  # only now: its warm-ups wait in the queue
        if all(each.done() for each in self._preloads):
            self._log_boot()

    def _load_stacks(self, model: "RunnableModel") -> None:
        for stack in self.stacks:
            if stack.model == model.loaded.spec.name:
                self._stack_loads.add(stack)
                load = self.loader.load_stack(model, stack)
                load.add_done_callback(partial(self._handle_stack, model, stack))

    def _handle_stack(self, model: "RunnableModel", stack: Stack, load: "Future[None]") -> None:
        """Warm up a stack whose extras were loaded."""
        if not load.cancelled() and not load.exception():
            spec, sizes = model.loaded.spec, self._warmup_sizes(model)
            for request in stack_warmups(stack, spec, self.extras, sizes):
                self._submit_warmup(model, request, stack.name)
        self._stack_loads.discard(stack)  # only now: its warm-up waits in the queue

    def _warm_up(self, model: "RunnableModel") -> None:
        spec = model.loaded.spec
        for request in warmup_requests(spec, self._warmup_sizes(model), model.max_batch_size):
            self._submit_warmup(model, request, spec.name)

    def _warmup_sizes(self, model: "RunnableModel") -> Sequence[Size]:
        if self.warmup_sizes is not None:
            return self.warmup_sizes
        defaults = model.loaded.spec.defaults
        is_gpu = model.loaded.device.type == "cuda"
        return [(defaults.width, defaults.height)] if is_gpu else []

    def _submit_warmup(
        self, model: "RunnableModel", request: GenerationRequest, subject: str
    ) -> None:
        warmup = self._queue.submit(model, request, cancel=threading.Event(), warms=subject)
        warmup.add_done_callback(self._handle_warmup)

    def _handle_warmup(self, warmup: "Future[Generation]") -> None:
        _log_failure(warmup)
        if self.is_warm:
            self._log_boot()


def _log_failure(warmup: "Future[Generation]") -> None:
    """Log a failed warm-up, which only makes the first images slower."""
    error = warmup.exception()
    if isinstance(error, WorkerError):
        log.warning("not warmed up", extra={"error": str(error)})
    elif error is not None and not isinstance(error, Cancelled):
        log.error("warm-up failed unexpectedly", exc_info=error)
