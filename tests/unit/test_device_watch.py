"""A device's thread that does not come back is reported, unless it has a reason to take long."""

import threading
import time

import pytest
from support.factories import make_request

from pixpod.engine.scheduling.device_watch import DeviceWatch, pausing_watch
from pixpod.methods import batch_key_of

KEY = batch_key_of(make_request())
LIMIT_S = 0.05
LONG_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def reports():
    """What was reported, in seconds; `wait` for the next one."""
    return Reports()


class Reports:
    def __init__(self) -> None:
        self.seen: list[float] = []
        self._came = threading.Semaphore(0)

    def __call__(self, waited_s: float) -> None:
        self.seen.append(waited_s)
        self._came.release()

    def wait(self, seconds: float = LONG_S) -> bool:
        return self._came.acquire(timeout=seconds)


def test_thread_that_stays_away_is_reported_once(reports):
    watch = DeviceWatch(reports, limit_s=LIMIT_S)
    watch.begin(KEY)
    watch.abandon()
    watch.abandon()
    assert reports.wait()
    assert not reports.wait(3 * LIMIT_S)
    assert reports.seen == [LIMIT_S]


def test_thread_that_returns_in_time_is_not(reports):
    watch = DeviceWatch(reports, limit_s=LIMIT_S)
    watch.begin(KEY)
    watch.abandon()
    watch.end()
    watch.begin(KEY)
    assert not reports.wait(3 * LIMIT_S), "the next batch is awaited"


def test_batch_that_is_awaited_may_take_any_time(reports):
    watch = DeviceWatch(reports, limit_s=LIMIT_S)
    watch.begin(KEY)
    assert not reports.wait(3 * LIMIT_S)


def test_kind_of_batch_with_longer_steps_has_more_time(reports):
    clock = Clock()
    watch = DeviceWatch(reports, limit_s=LIMIT_S, clock=clock)
    watch.begin(KEY)
    for step_s in (0.1, 0.02, 0.01):
        clock.now += step_s
        watch.step()
    watch.end()
    watch.begin(KEY)
    watch.abandon()
    clock.now += 10
    assert reports.wait()
    assert reports.seen == [pytest.approx(5 * 0.1)]


@pytest.mark.parametrize("is_paused_before", [True, False])
def test_nothing_is_reported_while_the_watch_is_paused(reports, is_paused_before):
    watch = DeviceWatch(reports, limit_s=LIMIT_S)
    watch.begin(KEY)
    with watch.on_this_thread():
        if not is_paused_before:
            watch.abandon()
        with pausing_watch():
            if is_paused_before:
                watch.abandon()
            assert not reports.wait(3 * LIMIT_S), "it may be compiling"
        resumed_at = time.monotonic()
        assert reports.wait()
        assert time.monotonic() - resumed_at >= LIMIT_S


def test_pause_is_no_step(reports):
    clock = Clock()
    watch = DeviceWatch(reports, limit_s=LIMIT_S, clock=clock)
    watch.begin(KEY)
    with watch.on_this_thread(), pausing_watch():
        clock.now += 100
    watch.step()
    watch.abandon()
    clock.now += 1
    assert reports.wait()
    assert reports.seen == [LIMIT_S]


def test_other_threads_cannot_pause(reports):
    watch = DeviceWatch(reports, limit_s=LIMIT_S)
    watch.begin(KEY)
    watch.abandon()
    with pausing_watch():
        assert reports.wait()
