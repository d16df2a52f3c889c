"""Models from the first byte to ready, side by side, in the background.

Reading begins at once, importing torch at the same time; each model then waits for its own files
only. Imports no torch itself, and draws nothing.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pixpod.catalog import Catalog, ModelSpec, Precision
from pixpod.engine.device_probe import check_cards, cuda_of_torch
from pixpod.engine.sources import WeightsLocator
from pixpod.engine.weights import (
    Weights,
    check_layout,
    check_licence,
    check_small_files,
    files_to_read,
)
from pixpod.errors import Fault, InternalError, WorkerError
from pixpod.prefetch import Prefetch, Verify
from pixpod.timeline import BootTimeline, Span

if TYPE_CHECKING:
    import torch

    from pixpod.engine.loading import LoadedModel

log = logging.getLogger(__name__)

HostFaultListener = Callable[[WorkerError], None]
"""Called by the thread that found it, before anybody who waits is told."""


class ModelLoader:
    """Loads each model once. `device` is `auto`, `cuda` or `cpu`; a precision of None is that of
    the weights, or the catalog's.
    """

    def __init__(
        self,
        *,
        models: Catalog,
        locator: WeightsLocator,
        device: str,
        asked_precision: Callable[[str], Precision | None],
        accepted_licences: frozenset[str],
        verify: Verify,
        timeline: BootTimeline,
        on_host_fault: HostFaultListener,
    ) -> None:
        self._models = models
        self._locator = locator
        self._asked_device = device
        self._asked_precision = asked_precision
        self._accepted_licences = accepted_licences
        self._timeline = timeline
        self._on_host_fault = on_host_fault
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
        self._loads: dict[str, Future[LoadedModel]] = {}
        self._device: Future[torch.device] | None = None
        self._threads = ThreadPoolExecutor(len(models) + 1, thread_name_prefix="load")

    def preload(self, names: Iterable[str]) -> "tuple[Future[LoadedModel], ...]":
        """Begin with these models, the first one first. As of `load`, in their order."""
        names = tuple(names)
        for name in names:
            self._read_ahead(name)
        return tuple(self._begin(name) for name in names)

    def load(self, name: str) -> "Future[LoadedModel]":
        """The model, ready or on its way; what is under way for others waits for its bytes.

        The future's error is a WorkerError. After a fault of the host the next call tries again.
        """
        load = self._begin(name)
        if not load.done():
            self._prefetch.prefer(name)
        return load

    def check_host(self) -> None:
        """Raises a WorkerError of Fault.HOST for what can be found wrong before the first model
        is loaded: no card that works, files that are short, damage in what that model needs.

        Waits for the first model's files on this disk to be read, without which no job could
        begin; a job that is taken earlier would be lost with a bad copy. Says nothing about the
        deployment's faults.
        """
        is_card_needed = any(spec.requires_cuda for spec in self._models.values())
        if self._asked_device == "cuda" or (self._asked_device == "auto" and is_card_needed):
            check_cards(cuda_of_torch())
        for spec in self._models.values():
            with _only_host_faults():
                self._locator.find(spec)
        if self._found_early:
            raise self._found_early
        for path in self._first_paths:
            self._prefetch.wait(path)

    def reading(self) -> tuple[Span, ...]:
        """When the bytes of each file came, as spans of the boot."""
        return tuple(
            Span(
                phase="read",
                subject=f"{read.model}/{read.path.parent.name}/{read.path.name}",
                began_s=read.began_s,
                ended_s=read.ended_s,
                size_bytes=read.size_bytes,
            )
            for read in self._prefetch.spans()
        )

    def stop(self) -> None:
        """End what is under way, drop all models and free the device."""
        self._prefetch.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._loads.clear()
        if self._device:
            from pixpod.engine import loading

            loading.free_memory()

    def _read_ahead(self, name: str) -> None:
        """Begin to read what is on the local disk; what the deployment has wrong, `_load` says."""
        spec = self._models[name]
        try:
            with _only_host_faults():
                check_licence(spec, self._accepted_licences)
                if weights := self._locator.find(spec):
                    paths = self._read(spec, weights)
                    self._first_paths = self._first_paths or paths
                    self._read_early[name] = weights
        except WorkerError as error:
            self._found_early = self._found_early or error

    def _begin(self, name: str) -> "Future[LoadedModel]":
        with self._lock:
            load = self._loads.get(name)
            if load is None or _is_to_be_repeated(load):
                load = self._loads[name] = self._threads.submit(self._load, name)
                load.add_done_callback(self._report_unforeseen)
        return load

    def _read(self, spec: ModelSpec, weights: Weights) -> tuple[Path, ...]:
        """Have the readers begin with a model, and check what they do not read."""
        check_layout(spec, weights)
        files = files_to_read(spec, weights)
        self._prefetch.add(spec.name, files)
        if self._verify is not Verify.SIZES:
            check_small_files(weights)
        return tuple(files)

    # --- on the threads of this loader --------------------------------------------------------

    def _load(self, name: str) -> "LoadedModel":
        try:
            model = self._load_model(name)
        except WorkerError as error:
            log.error("model not loaded", extra={"model": name, "error": str(error)})
            if error.fault is Fault.HOST:
                self._on_host_fault(error)
            raise
        self._timeline.mark("ready", name)
        log.info("model ready", extra={"model": name, "precision": model.identity.precision})
        return model

    def _load_model(self, name: str) -> "LoadedModel":
        spec = self._models[name]
        check_licence(spec, self._accepted_licences)
        device = self._prepare()
        with self._timeline.span("bring", name):
            weights = self._locator.bring(spec)
        if self._read_early.get(name) != weights:
            self._read(spec, weights)
        on = device.result()  # diffusers must be imported by one thread, or others see half of it
        from pixpod.engine import loading

        precision = loading.choose_precision(spec, weights, on, self._asked_precision(name))
        return loading.load_model(spec, weights, precision, on, self._prefetch, self._timeline)

    def _report_unforeseen(self, load: "Future[LoadedModel]") -> None:
        """What nobody foresaw counts as the host's: else a bad one would fail job after job."""
        error = None if load.cancelled() else load.exception()
        if error and not isinstance(error, WorkerError):
            log.error("model not loaded, unexpectedly", exc_info=error)
            self._on_host_fault(InternalError("a model could not be loaded: see the worker's log"))

    def _prepare(self) -> "Future[torch.device]":
        with self._lock:
            if self._device is None:
                self._device = self._threads.submit(self._import_and_find_device)
        return self._device

    def _import_and_find_device(self) -> "torch.device":
        with self._timeline.span("import"):
            from pixpod.engine import drawing, loading  # noqa: F401 - the device's thread needs it

            loading.silence_libraries()
            loading.import_pipelines({spec.family for spec in self._models.values()})
        with self._timeline.span("device"):
            return loading.prepare_device(self._asked_device)


@contextmanager
def _only_host_faults() -> Iterator[None]:
    """Lets faults of the deployment pass: jobs are answered with them."""
    try:
        yield
    except WorkerError as error:
        if error.fault is Fault.HOST:
            raise


def _is_to_be_repeated(load: "Future[LoadedModel]") -> bool:
    if not load.done():
        return False
    error = load.exception()
    return isinstance(error, WorkerError) and error.fault is Fault.HOST


def _reading_threads() -> int:
    """Two a core: half of them wait for the disk while the others compute checksums."""
    return max(4, min(16, 2 * (os.cpu_count() or 1)))
