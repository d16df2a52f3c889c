"""Queue of requests for one device; one thread executes them, batch by batch.

Knows no tensor: models execute their batches. `batching` decides which requests make a batch.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from pixpod.engine.base import Cancelled, OnStep, StepListener
from pixpod.engine.scheduling.batching import (
    BatchItem,
    FairQueue,
    ItemResult,
    QueuedRequest,
    choose_batch,
    is_isolated,
)
from pixpod.engine.scheduling.device_watch import DeviceWatch
from pixpod.errors import WorkerError
from pixpod.job import Generation, GenerationRequest, ImageResult, ModelIdentity
from pixpod.methods import BatchKey, batch_key_of
from pixpod.timeline import Clock, Timeline


class ExecutableModel(Protocol):
    """A model as the queue sees it."""

    @property
    def identity(self) -> ModelIdentity: ...

    def num_calls(self, request: GenerationRequest) -> int:
        """Return the denoiser calls of one image."""
        ...

    def max_batch_size(self, request: GenerationRequest) -> int:
        """Return the largest batch of such requests that the device takes."""
        ...

    def execute(
        self, items: Sequence[BatchItem], on_step: OnStep
    ) -> list[ItemResult | WorkerError]:
        """Return the outcome of each item, in their order; called by the device's thread.

        Raises a WorkerError that applies to all of them, and what `on_step` raises.
        """
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry:
    """A request from its arrival to its result."""

    request_id: int
    model: ExecutableModel
    request: GenerationRequest
    cancel: threading.Event
    on_step: StepListener | None
    is_warmup: bool
    waits_since: float
    answer: Future[Generation] = field(default_factory=Future)
    images: list[ImageResult] = field(default_factory=list)
    timeline: Timeline = field(default_factory=Timeline)
    device_ms: float = 0.0
    warnings: list[str] = field(default_factory=list)

    @property
    def num_left(self) -> int:
        return len(self.request.seeds) - len(self.images)

    def item(self, num_images: int) -> BatchItem:
        begin = len(self.images)
        seeds = self.request.seeds[begin : begin + num_images]
        return BatchItem(request=self.request, seeds=seeds, is_warmup=self.is_warmup)

    def queued(self) -> QueuedRequest:
        return QueuedRequest(
            request_id=self.request_id,
            key=batch_key_of(self.request),
            num_images=self.num_left,
            is_isolated=is_isolated(self.request),
        )

    def report_step(self, step: int, num_images: int) -> None:
        """Report the calls of all its images together, so that progress only advances."""
        if self.on_step:
            num_calls = self.model.num_calls(self.request)
            done = len(self.images) * num_calls + step * num_images
            self.on_step(done // len(self.request.seeds), num_calls)

    def add(self, result: ItemResult) -> None:
        self.images += result.images
        for phase, milliseconds in result.timings_ms.items():
            self.timeline.add(phase, milliseconds)
        self.device_ms += result.device_ms
        self.warnings += result.warnings

    def generation(self) -> Generation:
        return Generation(
            images=tuple(self.images),
            model=self.model.identity,
            timings_ms=self.timeline.milliseconds(),
            device_ms=self.device_ms,
            num_calls=self.model.num_calls(self.request),
            warnings=tuple(dict.fromkeys(self.warnings)),
        )


_Batch = list[tuple[_Entry, int]]
"""Requests, and the number of images that each has in the batch."""


class RequestQueue:
    """A queue and the one thread that serves it. All methods may be called from any thread.

    Warm-ups wait until no request does, and give way to requests that come. Without
    `is_batching` every image has a batch of its own. `watch` is notified of every batch and step.
    """

    def __init__(
        self,
        *,
        watch: DeviceWatch,
        is_batching: bool = True,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._watch = watch
        self._is_batching = is_batching
        self._clock = clock
        self._fair_queue = FairQueue()
        self._lock = threading.RLock()
        self._entries: dict[int, _Entry] = {}
        self._num_requests = 0
        self._executing: _Batch | None = None
        self._is_stopped = False
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")

    def submit(
        self,
        model: ExecutableModel,
        request: GenerationRequest,
        *,
        cancel: threading.Event,
        on_step: StepListener | None = None,
        is_warmup: bool = False,
    ) -> "Future[Generation]":
        """Queue a request whose model is loaded.

        The future raises a WorkerError, or Cancelled: at the next step after `cancel` was set,
        and when the queue is stopped.
        """
        with self._lock:
            self._num_requests += 1
            entry = _Entry(
                request_id=self._num_requests,
                model=model,
                request=request,
                cancel=cancel,
                on_step=on_step,
                is_warmup=is_warmup,
                waits_since=self._clock(),
            )
            entry.answer.set_running_or_notify_cancel()  # callers give up through `cancel`
            if self._is_stopped:
                entry.answer.set_exception(Cancelled())
                return entry.answer
            self._entries[entry.request_id] = entry
            self._start_next()
        return entry.answer

    def forget_cancelled(self) -> None:
        """Answer cancelled requests that wait; one that is being executed ends at its next step."""
        with self._lock:
            if self._executing is None:
                self._start_next()
            elif all(entry.cancel.is_set() for entry, _ in self._executing):
                self._watch.abandon()

    @property
    def is_warm(self) -> bool:
        """Return whether no warm-up is left."""
        with self._lock:
            return not any(entry.is_warmup for entry in self._entries.values())

    def stop(self) -> None:
        """Cancel everything; waits for the step that is running."""
        with self._lock:
            self._is_stopped = True
            for entry in self._entries.values():
                entry.cancel.set()
        self._device.shutdown(wait=True)
        with self._lock:
            for entry in list(self._entries.values()):
                self._finish(entry, Cancelled())

    # --- under the lock -----------------------------------------------------------------------

    def _start_next(self) -> None:
        """Execute the next batch unless one is being executed; requests come before warm-ups."""
        if self._executing is not None or self._is_stopped:
            return
        for entry in [e for e in self._entries.values() if e.cancel.is_set()]:
            self._finish(entry, Cancelled())
        urgent = [entry for entry in self._entries.values() if not entry.is_warmup]
        entries = urgent or list(self._entries.values())
        queued = [entry.queued() for entry in entries]
        if allocations := choose_batch(queued, self._fair_queue, partial(self._limit, entries)):
            batch = [(self._entries[each.request_id], each.num_images) for each in allocations]
            self._executing = batch
            self._watch.begin(batch_key_of(batch[0][0].request))
            self._device.submit(self._run, batch).add_done_callback(
                partial(self._finish_batch, batch)
            )

    def _limit(self, entries: Sequence[_Entry], key: BatchKey) -> int:
        if not self._is_batching:
            return 1
        first = next(entry for entry in entries if batch_key_of(entry.request) == key)
        return first.model.max_batch_size(first.request)

    def _settle(self, entry: _Entry, result: ItemResult | BaseException) -> None:
        if entry.cancel.is_set():
            self._finish(entry, Cancelled())
        elif isinstance(result, ItemResult):
            entry.add(result)
            if not entry.num_left:
                self._finish(entry, None)
        elif not (isinstance(result, Cancelled) and entry.is_warmup):  # that one runs again
            self._finish(entry, result)

    def _finish(self, entry: _Entry, error: BaseException | None) -> None:
        del self._entries[entry.request_id]
        if error is not None:
            entry.answer.set_exception(error)
        else:
            entry.answer.set_result(entry.generation())

    # --- on the device's thread ---------------------------------------------------------------

    def _run(self, batch: _Batch) -> list[ItemResult | WorkerError]:
        began_at = self._clock()
        first, _ = batch[0]
        for entry, _ in batch:
            entry.timeline.add("queue", (began_at - entry.waits_since) * 1e3)
        try:
            items = [entry.item(num_images) for entry, num_images in batch]
            with self._watch.on_this_thread():
                return first.model.execute(items, partial(self._step, batch))
        finally:
            self._fair_queue.charge(batch_key_of(first.request), self._clock() - began_at)

    def _step(self, batch: _Batch, step: int) -> None:
        self._watch.step()
        with self._lock:
            has_requests = any(not entry.is_warmup for entry in self._entries.values())
        if all(e.cancel.is_set() or (e.is_warmup and has_requests) for e, _ in batch):
            raise Cancelled
        for entry, num_images in batch:
            entry.report_step(step, num_images)

    def _finish_batch(
        self, batch: _Batch, execution: "Future[list[ItemResult | WorkerError]]"
    ) -> None:
        """Record the result of a batch that has been executed, or has failed as a whole."""
        error = execution.exception()
        results: Sequence[ItemResult | BaseException]
        results = [error] * len(batch) if error else execution.result()
        with self._lock:
            self._executing = None
            self._watch.end()
            for (entry, _), result in zip(batch, results, strict=True):
                entry.waits_since = self._clock()
                self._settle(entry, result)
            self._start_next()
