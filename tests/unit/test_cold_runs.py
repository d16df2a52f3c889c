"""The cold-start benchmark's order of runs, its ratios, and the plain read it compares with."""

import os

import pytest

from pixpod_bench.cold.plain_read import PlainRead
from pixpod_bench.cold.runs import NotHere, Sample, Target, Timing, measure

STATES = ("warm", "dropped")


def subjects(calls, **seconds):
    """Runs that take these seconds, one after the other."""

    def make(name, each):
        left = list(each)

        def run(before):
            before()
            calls.append(name)
            return Sample(seconds=left.pop(0), size_bytes=10**9)

        return run

    return {name: make(name, each) for name, each in seconds.items()}


def timing(name, *seconds):
    return Timing(case="case", name=name, state="warm", seconds=seconds, size_bytes=10**9)


def test_what_is_compared_runs_in_turns_and_none_is_always_first():
    calls: list[str] = []
    runs = subjects(calls, a=[1.0] * 4, b=[1.0] * 4)
    measure("case", runs, 2, STATES, lambda state: calls.append(f"({state})"))
    assert " ".join(calls) == (
        "(warm) a (warm) b (dropped) a (dropped) b (warm) b (warm) a (dropped) b (dropped) a"
    )


def test_median_spread_and_rate_are_over_the_rounds():
    runs = subjects([], a=[3.0, 1.0, 2.0])
    timings, missing = measure("case", runs, 3, ("warm",), lambda state: None)
    assert missing == {}
    assert timings == [timing("a", 3.0, 1.0, 2.0)]
    found = timings[0].median_s, timings[0].spread_percent, timings[0].gigabytes_per_s
    assert found == (2.0, 100.0, 0.5)


def test_moments_on_the_way_are_timings_too():
    run = {"a": lambda before: Sample(seconds=5.0, marks={"ready": 3.0})}
    timings, _ = measure("case", run, 1, ("warm",), lambda state: None)
    assert {each.name: each.seconds for each in timings} == {"a": (5.0,), "a, ready": (3.0,)}


def test_what_is_not_here_is_tried_once_and_costs_the_others_nothing():
    tried = []

    def absent(before):
        tried.append(1)
        raise NotHere("no such library")

    runs = {"absent": absent, **subjects([], a=[1.0] * 4)}
    timings, missing = measure("case", runs, 2, STATES, lambda state: None)
    assert len(tried) == 1
    assert missing == {"absent": "no such library"}
    assert [each.seconds for each in timings] == [(1.0, 1.0)] * 2


def test_no_run_begins_once_time_is_over():
    calls: list[str] = []
    may_go_on = iter([True, True, False])
    timings, missing = measure(
        "case",
        subjects(calls, a=[1.0] * 4, b=[1.0] * 4),
        2,
        STATES,
        lambda state: None,
        may_go_on=lambda: next(may_go_on, False),
    )
    assert calls == ["a", "b"]
    assert len(timings) == 2
    assert missing == {"a": "out of time", "b": "out of time"}


def test_ratio_is_of_neighbours_in_time_and_has_a_good_side():
    timings = [timing("a", 1.0, 2.0, 1.0), timing("b", 2.0, 6.0, 2.5)]
    for at_least, limit, is_met in ((True, 2.5, True), (True, 2.6, False), (False, 2.4, False)):
        (verdict,) = Target("b over a", "b", "a", limit, at_least).judge(timings)
        assert (verdict.value, verdict.is_met) == (2.5, is_met)
        assert verdict.subject == "case, warm"


def test_half_of_a_pair_is_no_ratio():
    assert Target("b over a", "b", "a", 1.0).judge([timing("b", 1.0)]) == []


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("block_bytes", [4096, 10000])
def test_plain_read_reads_all_bytes_once(tmp_path, monkeypatch, threads, block_bytes):
    sizes = {"a": 12345, "b": 0, "c": 8192}
    paths = [tmp_path / name for name in sizes]
    for path in paths:
        path.write_bytes(os.urandom(sizes[path.name]))
    seen = bytearray()
    preadv = os.preadv

    def noted(descriptor, buffers, offset):
        count = preadv(descriptor, buffers, offset)
        seen.extend(buffers[0][:count])
        return count

    monkeypatch.setattr(os, "preadv", noted)
    assert PlainRead(paths, threads, block_bytes).wait() == sum(sizes.values())
    assert sorted(seen) == sorted(b"".join(path.read_bytes() for path in paths))


def test_file_that_vanishes_ends_the_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    reading = PlainRead([path, tmp_path / "missing"], threads=2, block_bytes=1)
    with pytest.raises(FileNotFoundError):
        reading.wait()
