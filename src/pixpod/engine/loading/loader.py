"""Loads models in the background, side by side.

Reading files and importing torch begin at once; each model then waits for its own files only.
Imports no torch itself.
"""

import contextlib
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pixpod.catalog import Catalog, ModelSpec
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.device_probe import cuda_of_torch, probe_gpu, version_of_torch
from pixpod.engine.imports.libraries import lean_imports
from pixpod.engine.precision.precision import Hardware, choose_precision, limit_bytes
from pixpod.errors import Fault, InternalError, WorkerError
from pixpod.extras import Extras, ExtraSpec
from pixpod.families import Precision
from pixpod.gpus import find_gpu_class
from pixpod.job import Quality
from pixpod.methods import stack_extras
from pixpod.stacks import Stack
from pixpod.timeline import BootTimeline, Span
from pixpod.weights.layout import (
    Weights,
    check_extra_layout,
    check_layout,
    check_licence,
    check_small_files,
    extra_files_to_read,
    files_to_read,
    read_checkpoint_info,
)
from pixpod.weights.prefetch import Prefetch, Verify
from pixpod.weights.sources import WeightsLocator

if TYPE_CHECKING:
    from pixpod.engine.execution.runnable_model import RunnableModel
    from pixpod.engine.loading.variants import Variants

log = logging.getLogger(__name__)

HostFaultListener = Callable[[WorkerError], None]
"""Called by the thread that found the fault, before waiting jobs are answered."""


_Key = tuple[str, Quality]


class ModelLoader:
    """Loads each model once for each precision that is requested.

    `extras` are those that requests may name, and `stacks` what must fit together. `device` is
    `auto`, `cuda` or `cpu`. A requested precision of None is what suits the weights and the GPU.
    `memory_limit_gib` is the part of a GPU's memory that may be used, None for all. `compiled`
    holds packages that were compiled ahead; with None nothing is compiled.
    """

    def __init__(
        self,
        *,
        models: Catalog,
        extras: Extras = MappingProxyType({}),
        stacks: Sequence[Stack] = (),
        locator: WeightsLocator,
        device: str,
        requested_precision: Callable[[str], Precision | None],
        accepted_licences: frozenset[str],
        verify: Verify,
        timeline: BootTimeline,
        on_host_fault: HostFaultListener,
        memory_limit_gib: float | None = None,
        compiled: CompiledStore | None = None,
        prompt_cache_bytes: int = 0,
    ) -> None:
        self._models = models
        self._extras = extras
        self._stacks = stacks
        self._locator = locator
        self._requested_device = device
        self._requested_precision = requested_precision
        self._accepted_licences = accepted_licences
        self._timeline = timeline
        self._on_host_fault = on_host_fault
        self._memory_limit_gib = memory_limit_gib
        self._compiled = compiled
        self._prompt_cache_bytes = prompt_cache_bytes
        self._verify = verify
        self._prefetch = Prefetch(
            threads=_reading_threads(),
            verify=verify,
            clock=timeline.clock,
            on_damage=on_host_fault,
        )
        self._first_paths: tuple[Path, ...] = ()
        self._read_early: dict[str, Weights] = {}
        self._found_early: WorkerError | None = None
        self._lock = threading.Lock()
        self._loads: dict[_Key, Future[RunnableModel]] = {}
        self._extra_loads: dict[tuple[RunnableModel, str], Future[None]] = {}
        self._variants: Future[Variants] | None = None
        self._device_name = "unknown"
        self._is_stopped = False
        # one that waits for another of its model must not keep that one from a thread
        self._threads = ThreadPoolExecutor(
            2 * len(models) + len(extras) + len(stacks) + 1, thread_name_prefix="load"
        )

    def preload(self, names: Iterable[str]) -> "tuple[Future[RunnableModel], ...]":
        """Begin with these models in their default quality, the first one first.

        Returns one future per name, in order; see `load`.
        """
        names = tuple(names)
        for name in names:
            self._read_ahead(name)
        for extra in self._in_order_of_use():
            self._read_extra_ahead(extra)
        return tuple(self._begin(name, Quality.DEFAULT) for name in names)

    def load(self, name: str, quality: Quality = Quality.DEFAULT) -> "Future[RunnableModel]":
        """Return the model, loaded or being loaded; its files are read before those of others.

        Qualities that run in the same precision get the same model; others share all but the
        denoiser. The future raises a WorkerError. After a fault of the host the next call tries
        again.
        """
        load = self._begin(name, quality)
        if not load.done():
            self._prefetch.prefer(name)
        return load

    def load_extra(self, model: "RunnableModel", name: str) -> "Future[None]":
        """Load an extra for a loaded model. The future raises a WorkerError.

        After a fault of the host the next call tries again.
        """
        with self._lock:
            load = self._extra_loads.get((model, name))
            if load is None or _should_retry(load):
                load = self._threads.submit(self._load_extra, model, self._extras[name])
                self._extra_loads[model, name] = load
                load.add_done_callback(self._report_unforeseen)
        return load

    def load_stack(self, model: "RunnableModel", stack: Stack) -> "Future[None]":
        """Load the extras of a stack for a loaded model. The future raises a WorkerError.

        It is cancelled if the loader was stopped.
        """
        with self._lock:
            if not self._is_stopped:
                return self._threads.submit(self._load_stack, model, stack)
        stopped: Future[None] = Future()
        stopped.cancel()
        return stopped

    @property
    def device_name(self) -> str:
        """Name of the GPU as its driver has it, or `cpu`; `unknown` before it is found."""
        return self._device_name

    def check_host(self) -> None:
        """Check for faults of this host that can be found before the first model is loaded: no GPU
        that works, or one that cannot run the requested precision; no room for weights that must
        be copied; files that are too short; damage in files that the first model needs.

        Waits until the first model's files on this disk are read: without them no job could
        begin, and a job that was taken earlier would be lost with a bad copy. Ignores faults of
        the deployment, which jobs are answered with. Raises a WorkerError of Fault.HOST.
        """
        hardware = self._probe()
        for spec in self._models.values():
            with _suppress_deployment_faults():
                weights = self._locator.find(spec)
                if weights and hardware:
                    choose_precision(
                        spec,
                        read_checkpoint_info(spec, weights),
                        hardware,
                        requested=self._requested_precision(spec.name),
                    )
        if self._found_early:
            raise self._found_early
        for path in self._first_paths:
            self._prefetch.wait(path)

    def reading(self) -> tuple[Span, ...]:
        """Return when the bytes of each file came."""
        return self._prefetch.spans()

    def stop(self) -> None:
        """End running loads, drop all models and free the device."""
        with self._lock:
            self._is_stopped = True
        self._prefetch.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._loads.clear()
        self._extra_loads.clear()
        if self._variants:
            from pixpod.engine.device import free_memory

            if not self._variants.cancelled() and not self._variants.exception():
                self._variants.result().clear()
            free_memory()

    def _read_ahead(self, name: str) -> None:
        """Begin to read files on the local disk; `_load` reports errors of the deployment."""
        spec = self._models[name]
        try:
            with _suppress_deployment_faults():
                check_licence(spec, self._accepted_licences)
                if weights := self._locator.find(spec):
                    paths = self._read(spec, weights)
                    self._first_paths = self._first_paths or paths
                    self._read_early[name] = weights
        except WorkerError as error:
            self._found_early = self._found_early or error

    def _in_order_of_use(self) -> list[ExtraSpec]:
        """Return all extras, those of stacks first."""
        declared = [name for stack in self._stacks for name in self._extras_of(stack)]
        return [self._extras[name] for name in dict.fromkeys((*declared, *self._extras))]

    def _extras_of(self, stack: Stack) -> tuple[str, ...]:
        return stack_extras(stack, self._models[stack.model], self._extras)

    def _read_extra_ahead(self, extra: ExtraSpec) -> None:
        """Begin to read an extra behind all models; errors are those of the jobs that name it."""
        with contextlib.suppress(WorkerError):
            if weights := self._locator.find(extra):
                self._read_extra(extra, weights)

    def _read_extra(self, extra: ExtraSpec, weights: Weights) -> None:
        check_extra_layout(extra, weights)
        self._prefetch.add(extra.name, extra_files_to_read(extra, weights))
        if self._verify is not Verify.SIZES:
            check_small_files(weights)

    def _probe(self) -> Hardware | None:
        """Return the GPU as its driver reports it; None if no model needs one."""
        is_gpu_needed = any(spec.requires_cuda for spec in self._models.values())
        if self._requested_device == "cpu" or (
            self._requested_device == "auto" and not is_gpu_needed
        ):
            return None
        probed = probe_gpu(cuda_of_torch())
        gpu, torch_version = find_gpu_class(probed.capability), version_of_torch()
        return Hardware(
            gpu=gpu,
            memory_bytes=limit_bytes(probed.memory_bytes, self._memory_limit_gib),
            has_float8=torch_version is None or gpu.has_float8(torch_version),
        )

    def _begin(self, name: str, quality: Quality) -> "Future[RunnableModel]":
        # turbo leaves out steps of the default's denoiser
        key = (name, Quality.MAX if quality is Quality.MAX else Quality.DEFAULT)
        with self._lock:
            load = self._loads.get(key)
            if load is None or _should_retry(load):
                load = self._loads[key] = self._threads.submit(self._load, *key)
                load.add_done_callback(self._report_unforeseen)
        return load

    def _read(self, spec: ModelSpec, weights: Weights) -> tuple[Path, ...]:
        """Have the readers begin with a model, and check the files that they do not read."""
        check_layout(spec, weights)
        files = files_to_read(spec, weights)
        self._prefetch.add(spec.name, files)
        if self._verify is not Verify.SIZES:
            check_small_files(weights)
        return tuple(files)

    # --- on the threads of this loader --------------------------------------------------------

    def _load(self, name: str, quality: Quality) -> "RunnableModel":
        try:
            model = self._load_model(name, quality)
        except WorkerError as error:
            log.error("model not loaded", extra={"model": name, "error": str(error)})
            if error.fault is Fault.HOST:
                self._on_host_fault(error)
            raise
        self._timeline.mark("ready", name)
        log.info("model ready", extra={"model": name, "precision": model.identity.precision})
        return model

    def _load_model(self, name: str, quality: Quality) -> "RunnableModel":
        spec = self._models[name]
        check_licence(spec, self._accepted_licences)
        variants = self._prepare()
        with self._timeline.span("fetch", name):
            weights = self._locator.fetch(spec)
        if self._read_early.get(name) != weights:
            self._read(spec, weights)
        return variants.result().load(spec, weights, quality)

    def _load_extra(self, model: "RunnableModel", extra: ExtraSpec) -> None:
        try:
            check_licence(extra, self._accepted_licences)
            with self._timeline.span("fetch", extra.name):
                weights = self._locator.fetch(extra)
            self._read_extra(extra, weights)
            self._prefetch.prefer(extra.name)
            self._prepare().result().load_extra(model, extra, weights)
        except WorkerError as error:
            log.error("extra not loaded", extra={"extra": extra.name, "error": str(error)})
            if error.fault is Fault.HOST:
                self._on_host_fault(error)
            raise
        log.info("extra ready", extra={"extra": extra.name, "model": model.loaded.spec.name})

    def _load_stack(self, model: "RunnableModel", stack: Stack) -> None:
        for load in [self.load_extra(model, name) for name in self._extras_of(stack)]:
            load.result()

    def _report_unforeseen(self, load: "Future[Any]") -> None:
        """Report an unexpected error as a fault of the host, lest the host fail job after job."""
        error = None if load.cancelled() else load.exception()
        if error and not isinstance(error, WorkerError):
            log.error("model not loaded, unexpectedly", exc_info=error)
            self._on_host_fault(InternalError("a model could not be loaded: see the worker's log"))

    def _prepare(self) -> "Future[Variants]":
        with self._lock:
            if self._variants is None:
                self._variants = self._threads.submit(self._import_and_find_device)
        return self._variants

    def _import_and_find_device(self) -> "Variants":
        """Import and find the device, on one thread: others would see a half-imported diffusers."""
        with gc_disabled(), lean_imports(partial(self._timeline.span, "import")):
            from pixpod.engine.device import (
                find_hardware,
                limit_memory,
                name_device,
                prepare_device,
            )
            from pixpod.engine.loading.model_loading import import_pipelines, silence_libraries
            from pixpod.engine.loading.variants import Variants, plan_models
            from pixpod.engine.memory.sharing import Sharing

            silence_libraries()
            import_pipelines({spec.family for spec in self._models.values()})
        with self._timeline.span("device"):
            device = prepare_device(self._requested_device)
        self._device_name = name_device(device)
        hardware = find_hardware(device, self._memory_limit_gib)
        limit_memory(device, hardware)
        sharing = Sharing()
        plan = plan_models(
            self._models,
            self._locator.find,
            hardware,
            sharing,
            requested_precision=self._requested_precision,
            is_compiling=self._compiled is not None,
            memory_limit_gib=self._memory_limit_gib,
            extras=self._extras,
            stacks=self._stacks,
        )
        return Variants(
            device=device,
            hardware=hardware,
            plan=plan,
            sharing=sharing,
            compiled=self._compiled,
            requested_precision=self._requested_precision,
            prefetch=self._prefetch,
            timeline=self._timeline,
            prompt_cache_bytes=self._prompt_cache_bytes,
        )


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Import without garbage collection, and exempt the imported objects from later ones.

    The first import makes half a million objects that stay. With collections it takes a seventh
    longer, and each full collection afterwards stops the process for 0.4 s (two cores, torch 2.13,
    diffusers 0.42).
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _suppress_deployment_faults() -> Iterator[None]:
    """Ignore faults of the deployment: jobs are answered with them."""
    try:
        yield
    except WorkerError as error:
        if error.fault is Fault.HOST:
            raise


def _should_retry(load: "Future[Any]") -> bool:
    if not load.done():
        return False
    error = load.exception()
    return isinstance(error, WorkerError) and error.fault is Fault.HOST


def _reading_threads() -> int:
    """Return two threads for each core: half wait for the disk while half compute checksums."""
    return max(4, min(16, 2 * (os.cpu_count() or 1)))
