"""The cold-start benchmark's order of runs, its figures, and the plain read it compares with."""

import os

import pytest

from pixpod_bench.cold.plain_read import PlainRead, ReadPlan
from pixpod_bench.cold.runs import Missing, NotHere, Rounds, Sample, Target, Timing, measure

RATIO = Target(title="b over a", above="b", below="a", limit=2.0, at_least=True)


def rounds(calls, **changes):
    return Rounds(
        **{
            "repetitions": 2,
            "states": ("warm", "dropped"),
            "prepare": lambda state: calls.append(f"prepare {state}"),
            "on_run": lambda name, state: None,
            **changes,
        }
    )


def runs(calls, **seconds):
    def make(name, each):
        left = list(each)

        def run(before):
            before()
            calls.append(name)
            return Sample(seconds=left.pop(0), size_bytes=10**9)

        return run

    return {name: make(name, each) for name, each in seconds.items()}


def timing(name, *seconds):
    return Timing(
        case="case", name=name, state="warm", seconds=seconds, size_bytes=10**9, details={}
    )


def test_what_is_compared_runs_in_turns():
    calls: list[str] = []
    measure("case", runs(calls, a=[1.0] * 4, b=[1.0] * 4), rounds(calls))
    turn = [
        "prepare warm",
        "a",
        "prepare warm",
        "b",
        "prepare dropped",
        "a",
        "prepare dropped",
        "b",
    ]
    assert calls == turn * 2


def test_median_and_spread_are_over_the_rounds():
    timings, missing = measure(
        "case", runs([], a=[3.0, 1.0, 2.0]), rounds([], repetitions=3, states=("warm",))
    )
    assert missing == []
    assert timings == [timing("a", 3.0, 1.0, 2.0)]
    assert timings[0].median_s == 2.0
    assert timings[0].spread_percent == 100.0
    assert timings[0].gigabytes_per_s == 0.5


def test_moments_on_the_way_are_timings_too():
    def run(before):
        return Sample(seconds=5.0, marks={"ready": 3.0})

    timings, _ = measure("case", {"a": run}, rounds([], repetitions=1, states=("warm",)))
    assert {each.name: each.seconds for each in timings} == {"a": (5.0,), "a, ready": (3.0,)}


def test_what_is_not_here_is_asked_once_and_costs_the_others_nothing():
    asked = []

    def absent(before):
        asked.append(1)
        raise NotHere("no such library")

    timings, missing = measure("case", {"absent": absent, **runs([], a=[1.0] * 4)}, rounds([]))
    assert len(asked) == 1
    assert missing == [Missing(case="case", name="absent", reason="no such library")]
    assert [each.seconds for each in timings] == [(1.0, 1.0)] * 2


def test_no_run_begins_once_time_is_over():
    calls: list[str] = []
    may_go_on = iter([True, True, False])
    timings, missing = measure(
        "case",
        runs(calls, a=[1.0] * 4, b=[1.0] * 4),
        rounds(calls, may_go_on=lambda: next(may_go_on, False)),
    )
    assert [call for call in calls if not call.startswith("prepare")] == ["a", "b"]
    assert len(timings) == 2
    assert {each.reason for each in missing} == {"out of time"}


def test_ratio_is_of_medians_and_its_range_of_neighbours():
    timings = [timing("a", 1.0, 2.0, 1.0), timing("b", 2.0, 6.0, 2.5)]
    (verdict,) = RATIO.judge(timings)
    assert (verdict.ratio, verdict.lowest, verdict.highest) == (2.5, 2.0, 3.0)
    assert verdict.is_met


@pytest.mark.parametrize(
    ("at_least", "seconds", "is_met"),
    [(True, 2.0, True), (True, 1.9, False), (False, 2.0, True), (False, 2.1, False)],
)
def test_target_has_a_good_side(at_least, seconds, is_met):
    target = Target(title="", above="b", below="a", limit=2.0, at_least=at_least)
    (verdict,) = target.judge([timing("a", 1.0), timing("b", seconds)])
    assert verdict.is_met is is_met


def test_half_of_a_pair_is_no_verdict():
    assert RATIO.judge([timing("b", 1.0)]) == []


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
    plan = ReadPlan(threads=threads, block_bytes=block_bytes)
    assert PlainRead(paths, plan).wait() == sum(sizes.values())
    assert sorted(seen) == sorted(b"".join(path.read_bytes() for path in paths))


def test_file_that_vanishes_ends_the_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    reading = PlainRead([path, tmp_path / "missing"], ReadPlan(threads=2, block_bytes=1))
    with pytest.raises(FileNotFoundError):
        reading.wait()
