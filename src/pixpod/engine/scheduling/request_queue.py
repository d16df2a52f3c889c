"""Queue of requests for one device; one thread executes them, batch by batch.

Knows no tensor: models execute their batches. `batching` decides which requests make a batch.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from pixpod.engine.base import Cancelled, StepListener
from pixpod.engine.scheduling.batching import FairQueue, ItemResult, choose_batch
from pixpod.engine.scheduling.device_watch import DeviceWatch
from pixpod.engine.scheduling.queue_entry import ExecutableModel, QueueBatch, QueueEntry
from pixpod.errors import WorkerError
from pixpod.job import Generation, GenerationRequest
from pixpod.methods import BatchKey, batch_key_of
from pixpod.timeline import Clock


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
        self._entries: dict[int, QueueEntry] = {}
        self._num_requests = 0
        self._executing: QueueBatch | None = None
        self._is_stopped = False
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")

    def submit(
        self,
        model: ExecutableModel,
        request: GenerationRequest,
        *,
        cancel: threading.Event,
        on_step: StepListener | None = None,
        warms: str | None = None,
    ) -> "Future[Generation]":
        """Queue a request whose model is loaded.

        `warms` names the model or stack that a warm-up is of, and is None for other requests.

        The future raises a WorkerError, or Cancelled: at the next step after `cancel` was set,
        and when the queue is stopped.
        """
        with self._lock:
            self._num_requests += 1
            entry = QueueEntry(
                request_id=self._num_requests,
                model=model,
                request=request,
                cancel=cancel,
                on_step=on_step,
                warms=warms,
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

    def _limit(self, entries: Sequence[QueueEntry], key: BatchKey) -> int:
        if not self._is_batching:
            return 1
        first = next(entry for entry in entries if batch_key_of(entry.request) == key)
        return first.model.max_batch_size(first.request)

    def _settle(self, entry: QueueEntry, result: ItemResult | BaseException) -> None:
        if entry.cancel.is_set():
            self._finish(entry, Cancelled())
        elif isinstance(result, ItemResult):
            entry.add(result)
            if not entry.num_left:
                self._finish(entry, None)
        elif not (isinstance(result, Cancelled) and entry.is_warmup):  # that one runs again
            self._finish(entry, result)

    def _finish(self, entry: QueueEntry, error: BaseException | None) -> None:
        del self._entries[entry.request_id]
        if error is not None:
            entry.answer.set_exception(error)
        else:
            entry.answer.set_result(entry.generation())

    # --- on the device's thread ---------------------------------------------------------------

    def _run(self, batch: QueueBatch) -> list[ItemResult | WorkerError]:
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

    def _step(self, batch: QueueBatch, step: int) -> None:
        self._watch.step()
        with self._lock:
            has_requests = any(not entry.is_warmup for entry in self._entries.values())
        if all(e.cancel.is_set() or (e.is_warmup and has_requests) for e, _ in batch):
            raise Cancelled
        for entry, num_images in batch:
            entry.report_step(step, num_images)

    def _finish_batch(
        self, batch: QueueBatch, execution: "Future[list[ItemResult | WorkerError]]"
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
