"""Requests wait here for the device; one thread draws them, batch by batch.

Knows no tensor: how a batch is drawn is given. Which requests make a batch, `batching` decides.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pixpod.engine.base import Cancelled, CancelToken, StepListener
from pixpod.engine.batching import (
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

log = logging.getLogger(__name__)

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
        self._changed = threading.Condition()
        self._entries: dict[int, _Entry[Model]] = {}
        self._drawing: tuple[_Entry[Model], ...] = ()
        self._num_tickets = 0
        self._is_stopped = False
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)

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
        with self._changed:
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
            if self._thread.ident is None:
                self._thread.start()
            self._entries[entry.ticket] = entry
            self._changed.notify_all()
        return entry.answer

    def wake(self) -> None:
        """Look at what waits: something was cancelled."""
        with self._changed:
            self._changed.notify_all()

    @property
    def is_warm(self) -> bool:
        """Whether no warm-up is left."""
        with self._changed:
            return not any(entry.is_warmup for entry in self._entries.values())

    def stop(self) -> None:
        """Cancel everything; waits for the step that is being drawn."""
        with self._changed:
            self._is_stopped = True
            for entry in self._entries.values():
                entry.cancel.cancel()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for entry in list(self._entries.values()):
            self._finish(entry, Cancelled())

    # --- on the device's thread ---------------------------------------------------------------

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            self._run(batch)

    def _next(self) -> tuple[Share, ...] | None:
        """The shares of the next batch; None when the queue was stopped."""
        with self._changed:
            while not self._is_stopped:
                for entry in [e for e in self._entries.values() if e.cancel.is_cancelled]:
                    self._finish(entry, Cancelled())
                urgent = [entry for entry in self._entries.values() if not entry.is_warmup]
                waiting = [entry.waiting() for entry in urgent or self._entries.values()]
                if batch := choose_batch(waiting, self._turns, self._row_limit):
                    self._drawing = tuple(self._entries[share.ticket] for share in batch)
                    return batch
                self._changed.wait()
        return None

    def _run(self, batch: tuple[Share, ...]) -> None:
        entries = self._drawing
        parts = [entry.part(share.num_rows) for entry, share in zip(entries, batch, strict=True)]
        began_at = self._clock()
        for entry in entries:
            entry.timeline.add("queue", (began_at - entry.waits_since) * 1e3)
        results: Sequence[Drawn | BaseException]
        try:
            results = self._draw(entries[0].model, parts, self._watch(batch))
        except BaseException as error:  # noqa: BLE001 - whoever waits for it is told
            results = [error] * len(parts)
        ended_at = self._clock()
        self._turns.charge(GroupKey.of(entries[0].request), ended_at - began_at)
        with self._changed:
            self._drawing = ()
            for entry, result in zip(entries, results, strict=True):
                entry.waits_since = ended_at
                self._settle(entry, result)

    def _watch(self, batch: tuple[Share, ...]) -> OnStep:
        entries = self._drawing

        def on_step(step: int) -> None:
            if all(self._is_left(entry) for entry in entries):
                raise Cancelled
            for entry, share in zip(entries, batch, strict=True):
                entry.tell_step(step, share.num_rows)

        return on_step

    def _is_left(self, entry: _Entry[Model]) -> bool:
        """Whether nobody waits for this batch's rows: a warm-up gives way to a request."""
        return entry.cancel.is_cancelled or (entry.is_warmup and self._is_asked)

    @property
    def _is_asked(self) -> bool:
        with self._changed:
            return any(not entry.is_warmup for entry in self._entries.values())

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
