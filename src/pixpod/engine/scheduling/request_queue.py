"""Requests wait here for the device; one thread draws them, batch by batch.

Knows no tensor: how a batch is drawn is given. Which requests make a batch, `batching` decides.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from pixpod.engine.base import Cancelled, CancelToken, StepListener
from pixpod.engine.scheduling.batching import (
    GroupKey,
    RowLimit,
    Share,
    Turns,
    Waiting,
    choose_batch,
    runs_alone,
)
from pixpod.errors import WorkerError
from pixpod.job import Generation, GenerationRequest, ModelIdentity, RawImage
from pixpod.timeline import Clock, Timeline

Model = TypeVar("Model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One request's rows of a batch."""

    request: GenerationRequest
    seeds: tuple[int, ...]
    is_warmup: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What became of a part. `device_ms` is its own share of the time that the batch took."""

    images: tuple[RawImage, ...]
    timings_ms: dict[str, float]
    device_ms: float
    warnings: tuple[str, ...]


OnStep = Callable[[int], None]
"""Called with the number of steps done; raises Cancelled when nobody waits for the batch."""

DrawBatch = Callable[[Model, Sequence[Part], OnStep], list[Drawn | WorkerError]]
"""What became of each part, in their order. Raises a WorkerError that holds for all of them, and
what `OnStep` raises.
"""


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry(Generic[Model]):
    """A request from its arrival to its answer."""

    ticket: int
    model: Model
    identity: ModelIdentity
    request: GenerationRequest
    cancel: CancelToken
    on_step: StepListener | None
    is_warmup: bool
    waits_since: float
    answer: Future[Generation] = field(default_factory=Future)
    images: list[RawImage] = field(default_factory=list)
    timeline: Timeline = field(default_factory=Timeline)
    device_ms: float = 0.0
    warnings: list[str] = field(default_factory=list)

    @property
    def num_left(self) -> int:
        return len(self.request.seeds) - len(self.images)

    def part(self, num_rows: int) -> Part:
        begin = len(self.images)
        seeds = self.request.seeds[begin : begin + num_rows]
        return Part(request=self.request, seeds=seeds, is_warmup=self.is_warmup)

    def waiting(self) -> Waiting:
        return Waiting(
            ticket=self.ticket,
            key=GroupKey.of(self.request),
            num_rows=self.num_left,
            runs_alone=runs_alone(self.request),
        )

    def tell_step(self, step: int, num_rows: int) -> None:
        """Steps of all its images together, so that a request in several batches only advances."""
        if self.on_step:
            steps = self.request.num_inference_steps
            done = len(self.images) * steps + step * num_rows
            self.on_step(done // len(self.request.seeds), steps)

    def add(self, drawn: Drawn) -> None:
        self.images += drawn.images
        for phase, milliseconds in drawn.timings_ms.items():
            self.timeline.add(phase, milliseconds)
        self.device_ms += drawn.device_ms
        self.warnings += drawn.warnings

    def generation(self) -> Generation:
        return Generation(
            images=tuple(self.images),
            model=self.identity,
            timings_ms=self.timeline.milliseconds(),
            device_ms=self.device_ms,
            warnings=tuple(dict.fromkeys(self.warnings)),
        )


class DeviceQueue(Generic[Model]):
    """A queue and the one thread that serves it. All methods may be called from any thread.

    Warm-ups wait until nobody else does, and give way to whoever comes.
    """

    def __init__(
        self, draw: DrawBatch[Model], row_limit: RowLimit, clock: Clock = time.perf_counter
    ) -> None:
        self._draw = draw
        self._row_limit = row_limit
        self._clock = clock
        self._turns = Turns()
        self._lock = threading.RLock()
        self._entries: dict[int, _Entry[Model]] = {}
        self._num_tickets = 0
        self._is_drawing = False
        self._is_stopped = False
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")

    def submit(
        self,
        model: Model,
        identity: ModelIdentity,
        request: GenerationRequest,
        *,
        cancel: CancelToken,
        on_step: StepListener | None = None,
        is_warmup: bool = False,
    ) -> "Future[Generation]":
        """The images of a request whose model is loaded.

        The future raises a WorkerError, or Cancelled: at the next step after `cancel` was
        cancelled, and when the queue is stopped.
        """
        with self._lock:
            self._num_tickets += 1
            entry = _Entry(
                ticket=self._num_tickets,
                model=model,
                identity=identity,
                request=request,
                cancel=cancel,
                on_step=on_step,
                is_warmup=is_warmup,
                waits_since=self._clock(),
            )
            entry.answer.set_running_or_notify_cancel()  # whoever gives up tells it by `cancel`
            if self._is_stopped:
                entry.answer.set_exception(Cancelled())
                return entry.answer
            self._entries[entry.ticket] = entry
            self._go_on()
        return entry.answer

    def forget_cancelled(self) -> None:
        """Answer what waits and was cancelled; what is being drawn ends at its next step."""
        with self._lock:
            if not self._is_drawing:
                self._go_on()

    @property
    def is_warm(self) -> bool:
        """Whether no warm-up is left."""
        with self._lock:
            return not any(entry.is_warmup for entry in self._entries.values())

    def stop(self) -> None:
        """Cancel everything; waits for the step that is being drawn."""
        with self._lock:
            self._is_stopped = True
            for entry in self._entries.values():
                entry.cancel.cancel()
        self._device.shutdown(wait=True)
        with self._lock:
            for entry in list(self._entries.values()):
                self._finish(entry, Cancelled())

    # --- under the lock -----------------------------------------------------------------------

    def _go_on(self) -> None:
        """Have the next batch drawn, unless one is; requests before warm-ups."""
        if self._is_drawing or self._is_stopped:
            return
        for entry in [e for e in self._entries.values() if e.cancel.is_cancelled]:
            self._finish(entry, Cancelled())
        urgent = [entry for entry in self._entries.values() if not entry.is_warmup]
        waiting = [entry.waiting() for entry in urgent or self._entries.values()]
        if shares := choose_batch(waiting, self._turns, self._row_limit):
            batch = _Batch(
                entries=tuple(self._entries[share.ticket] for share in shares), shares=shares
            )
            self._is_drawing = True
            self._device.submit(self._run, batch).add_done_callback(partial(self._note, batch))

    def _settle(self, entry: _Entry[Model], result: Drawn | BaseException) -> None:
        if entry.cancel.is_cancelled:
            self._finish(entry, Cancelled())
        elif isinstance(result, Drawn):
            entry.add(result)
            if not entry.num_left:
                self._finish(entry, None)
        elif not (isinstance(result, Cancelled) and entry.is_warmup):  # that one is drawn again
            self._finish(entry, result)

    def _finish(self, entry: _Entry[Model], error: BaseException | None) -> None:
        del self._entries[entry.ticket]
        if error is not None:
            entry.answer.set_exception(error)
        else:
            entry.answer.set_result(entry.generation())

    # --- on the device's thread ---------------------------------------------------------------

    def _run(self, batch: "_Batch[Model]") -> list[Drawn | WorkerError]:
        began_at = self._clock()
        for entry in batch.entries:
            entry.timeline.add("queue", (began_at - entry.waits_since) * 1e3)
        try:
            return self._draw(batch.entries[0].model, batch.parts(), partial(self._step, batch))
        finally:
            self._turns.charge(GroupKey.of(batch.entries[0].request), self._clock() - began_at)

    def _step(self, batch: "_Batch[Model]", step: int) -> None:
        with self._lock:
            is_asked = any(not entry.is_warmup for entry in self._entries.values())
        if all(e.cancel.is_cancelled or (e.is_warmup and is_asked) for e in batch.entries):
            raise Cancelled
        for entry, share in zip(batch.entries, batch.shares, strict=True):
            entry.tell_step(step, share.num_rows)

    def _note(self, batch: "_Batch[Model]", drawing: "Future[list[Drawn | WorkerError]]") -> None:
        """Called when a batch has been drawn, or failed as a whole."""
        error = drawing.exception()
        results: Sequence[Drawn | BaseException]
        results = [error] * len(batch.entries) if error else drawing.result()
        with self._lock:
            self._is_drawing = False
            for entry, result in zip(batch.entries, results, strict=True):
                entry.waits_since = self._clock()
                self._settle(entry, result)
            self._go_on()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch(Generic[Model]):
    entries: tuple[_Entry[Model], ...]
    shares: tuple[Share, ...]

    def parts(self) -> list[Part]:
        pairs = zip(self.entries, self.shares, strict=True)
        return [entry.part(share.num_rows) for entry, share in pairs]
