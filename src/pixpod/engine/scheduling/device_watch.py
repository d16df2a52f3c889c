"""Notices a device's thread that does not come back to a batch that nobody awaits any more.

A GPU that hangs never returns from waiting for its work. Steps cannot be ended from outside, so all
that is left is to end the process.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from pixpod.methods import BatchKey
from pixpod.timeline import Clock

RETURN_LIMIT_S = 30.0
STEPS_ALLOWED = 5
"""The thread may take this long, or as many of the longest steps of its kind if that is more."""

StuckListener = Callable[[float], None]
"""Called once per batch, by a thread of the watch, with the seconds that were waited."""

_watch: ContextVar["DeviceWatch | None"] = ContextVar("device_watch", default=None)


@contextmanager
def pausing_watch() -> Iterator[None]:
    """Exempt a block of the device's thread that may take minutes: onloading, compiling.

    Does nothing on other threads.
    """
    watch = _watch.get()
    if watch is None:
        yield
        return
    watch.pause()
    try:
        yield
    finally:
        watch.resume()


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    """One batch from its submission to its end."""

    key: BatchKey
    step_since: float
    abandoned_since: float | None = None
    num_pauses: int = 0
    has_returned: bool = False


class DeviceWatch:
    """Times the steps of one batch after the other. All methods may be called from any thread."""

    def __init__(
        self,
        on_stuck: StuckListener,
        *,
        limit_s: float = RETURN_LIMIT_S,
        clock: Clock = time.monotonic,
    ) -> None:
        self._on_stuck = on_stuck
        self._limit_s = limit_s
        self._clock = clock
        self._changed = threading.Condition()
        self._longest_s: dict[BatchKey, float] = {}
        self._run: _Run | None = None

    def begin(self, key: BatchKey) -> None:
        """Begin with a batch; the one before has ended."""
        with self._changed:
            self._run = _Run(key=key, step_since=self._clock())

    @contextmanager
    def on_this_thread(self) -> Iterator[None]:
        """Have `pausing_watch` concern this watch during the block."""
        token = _watch.set(self)
        try:
            yield
        finally:
            _watch.reset(token)

    def step(self) -> None:
        """Note that one more step of the batch is done."""
        with self._changed:
            assert self._run is not None
            self._end_step(self._run)

    def end(self) -> None:
        """Note that the thread has returned."""
        with self._changed:
            assert self._run is not None
            self._end_step(self._run)
            self._run.has_returned = True
            self._run = None
            self._changed.notify_all()

    def abandon(self) -> None:
        """Note that nobody awaits the batch that is being executed: its thread has to return."""
        with self._changed:
            run = self._run
            if run is None or run.abandoned_since is not None:
                return
            run.abandoned_since = self._clock()
        threading.Thread(
            target=self._await_return, args=(run,), name="device-watch", daemon=True
        ).start()

    def pause(self) -> None:
        """Stop the clock. May be nested."""
        with self._changed:
            if self._run:
                self._run.num_pauses += 1

    def resume(self) -> None:
        """Begin to wait anew."""
        with self._changed:
            if run := self._run:
                run.num_pauses -= 1
                run.step_since = self._clock()
                if run.abandoned_since is not None:
                    run.abandoned_since = self._clock()
                self._changed.notify_all()

    def _end_step(self, run: _Run) -> None:
        now = self._clock()
        self._longest_s[run.key] = max(self._longest_s.get(run.key, 0.0), now - run.step_since)
        run.step_since = now

    def _await_return(self, run: _Run) -> None:
        with self._changed:
            limit_s = max(self._limit_s, STEPS_ALLOWED * self._longest_s.get(run.key, 0.0))
            while not run.has_returned:
                assert run.abandoned_since is not None
                left_s = run.abandoned_since + limit_s - self._clock()
                if run.num_pauses:
                    self._changed.wait()
                elif left_s > 0:
                    self._changed.wait(left_s)
                else:
                    break
            else:
                return
        self._on_stuck(limit_s)
