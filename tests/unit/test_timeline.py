"""Phases by a clock that the test moves."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pixpod.timeline import BootTimeline, Span, Timeline

SRC = Path(__file__).resolve().parents[2] / "src"


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


@pytest.fixture
def boot(clock):
    clock.now_s = 0.0
    return BootTimeline(clock)


def test_spans_are_in_the_order_of_their_beginnings(boot, clock):
    with boot.span("import"):
        clock.now_s = 1.0
        with boot.span("device"):
            clock.now_s = 1.5
    boot.add(Span(phase="read", subject="flux-dev/vae", began_s=0.5, ended_s=0.7, size_bytes=10))
    assert [(span.phase, span.began_s, span.ended_s) for span in boot.spans()] == [
        ("import", 0.0, 1.5),
        ("read", 0.5, 0.7),
        ("device", 1.0, 1.5),
    ]


def test_span_that_raises_is_kept(boot, clock):
    with pytest.raises(ValueError), boot.span("import"):
        clock.now_s = 2.0
        raise ValueError
    assert boot.milliseconds() == {"import": 2000.0}


def test_components_of_a_model_count_from_the_first_to_the_last(boot):
    for component, began_s in (("vae", 3.0), ("transformer", 1.0)):
        boot.add(
            Span(phase="bind", subject=f"sdxl/{component}", began_s=began_s, ended_s=began_s + 0.5)
        )
    assert boot.milliseconds() == {"bind_sdxl": 2500.0}


def test_moment_is_measured_from_the_process_start(boot, clock):
    clock.now_s = 4.25
    boot.mark("ready", "sdxl")
    assert boot.milliseconds() == {"ready_sdxl": 4250.0}


def test_time_before_our_code_counts():
    """A process that sleeps before it imports us, timed from outside."""
    code = "import time; time.sleep(0.3); from pixpod.timeline import since_process_start as since"
    began_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(since()())"],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SRC)},
    )
    elapsed_s = time.perf_counter() - began_s
    hundredth_s = 0.01  # what the system's start times are rounded to
    assert 0.3 <= float(done.stdout) <= elapsed_s + hundredth_s
