"""Phases by a clock that the test moves."""

import pytest

from pixpod.timeline import Timeline


class FakeClock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return FakeClock()


def test_phase_is_timed_in_milliseconds(clock):
    timeline = Timeline(clock)
    with timeline.phase("denoise"):
        clock.now_s += 1.25
    assert timeline.milliseconds() == {"denoise": 1250.0}


def test_phase_that_comes_back_is_added_up(clock):
    timeline = Timeline(clock)
    for seconds in (1, 2):
        with timeline.phase("decode"):
            clock.now_s += seconds
    timeline.add("decode", 500)
    assert timeline.milliseconds() == {"decode": 3500.0}


def test_phases_may_overlap(clock):
    timeline = Timeline(clock)
    with timeline.phase("total"):
        clock.now_s += 1
        with timeline.phase("encode"):
            clock.now_s += 2
    assert timeline.milliseconds() == {"encode": 2000.0, "total": 3000.0}


def test_phase_that_raises_is_timed_too(clock):
    timeline = Timeline(clock)
    with pytest.raises(RuntimeError), timeline.phase("upload"):
        clock.now_s += 1
        raise RuntimeError
    assert timeline.milliseconds() == {"upload": 1000.0}


def test_result_is_a_copy():
    timeline = Timeline()
    timeline.milliseconds()["x"] = 1.0
    assert timeline.milliseconds() == {}
