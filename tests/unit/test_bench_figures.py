"""Statistics, tables and comparisons that all benchmarks share."""

import json
import math
import random
import re
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixpod_bench.compare import Compared, compared_table, compared_verdicts
from pixpod_bench.figures import (
    Verdict,
    alternate,
    median_interval,
    percentile,
    ratio_of,
    spread_percent,
)
from pixpod_bench.machine import ROOT, Deadline, describe_machine, environment
from pixpod_bench.report import publish, table, verdict_table


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_percentile_is_one_of_the_values_with_enough_below(values, percent):
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100 - 1e-9
    if percent:
        assert sum(value < found for value in values) < len(values) * percent / 100 + 1e-9


def test_spread_is_in_percent_of_the_median():
    assert spread_percent([5.0, 1.0, 4.0, 2.0, 3.0]) == pytest.approx(133.33, abs=0.01)


@pytest.mark.parametrize(
    ("n", "rank"), [(5, None), (6, 1), (10, 2), (20, 6), (30, 10), (50, 18), (100, 40)]
)
def test_interval_has_the_ranks_of_the_published_table(n, rank):
    """Ranks of the sign test's 95 % interval (Conover, table A3; n = 30: 10th and 21st)."""
    values = [float(value) for value in range(1, n + 1)]
    random.Random(0).shuffle(values)
    assert median_interval(values) == (None if rank is None else (rank, n + 1 - rank))


def test_interval_holds_the_true_median_in_95_of_100_runs():
    source = random.Random(1)
    held = 0
    for _ in range(2000):
        interval = median_interval([source.lognormvariate(0, 0.3) for _ in range(30)])
        assert interval is not None
        held += interval[0] <= 1 <= interval[1]
    assert 0.94 < held / 2000 < 0.975  # 95.7 % exactly


def test_ratio_is_of_neighbours_in_time():
    """A machine that is three times slower in one round must not show."""
    ratio = ratio_of([2.0, 6.0, 2.2], [1.0, 3.0, 1.0])
    assert (ratio.median, ratio.low, ratio.high, ratio.pairs) == (2.0, None, None, 3)
    assert str(ratio) == "2.000 (3 pairs)"
    assert str(ratio_of([2.0, 3.0, 4.0] * 2, [1.0] * 6)) == "3.000 [2.000, 4.000]"


def test_sides_take_turns_and_none_is_always_first():
    order = []

    def run(side, number):
        order.append((number, side))

    found = alternate({side: partial(run, side) for side in "AB"}, 3)
    assert order == [(0, "A"), (0, "B"), (1, "B"), (1, "A"), (2, "A"), (2, "B")]
    assert [len(samples) for samples in found.values()] == [3, 3]


@pytest.mark.parametrize(
    ("value", "at_least", "is_met", "word"),
    [
        (1.9, True, True, "met"),
        (1.7, True, False, "MISSED"),
        (1.7, False, True, "met"),
        (1.9, False, False, "MISSED"),
        (None, False, None, "not measured"),
    ],
)
def test_target_is_met_on_its_good_side_only(value, at_least, is_met, word):
    verdict = Verdict(
        target="gain", subject="sdxl", value=value, limit=1.8, at_least=at_least, unit="x"
    )
    assert verdict.is_met is is_met
    assert verdict_table("Targets", [verdict]).splitlines()[-1].endswith(word)


def test_table_has_words_left_figures_right_and_nothing_without_rows():
    columns = (("of", lambda row: row[0]), ("ms", lambda row: row[1]))
    text = table("What", columns, [("one", ("a", "10.0")), ("other", ("bcd", "2.5"))], words=1)
    assert text.splitlines()[1:] == [
        "What    of      ms",
        "------  ----  ----",
        "one     a     10.0",
        "other   bcd    2.5",
    ]
    assert table("What", columns, []) == ""


class TestCompared:
    def test_upper_end_of_the_interval_is_judged(self):
        """30 pairs: a median of 1 with a wide interval is no proof."""
        tight = Compared.of("boot", "tiny", [1.0 + n / 1000 for n in range(30)], [1.0] * 30)
        wide = Compared.of("boot", "tiny", [0.9 + n / 100 for n in range(30)], [1.0] * 30)
        assert tight.ratio.high == pytest.approx(1.020)
        assert [each.is_met for each in compared_verdicts([tight, wide])] == [True, False]
        assert "1.014 [1.009, 1.020]" in compared_table([tight])

    def test_fewer_than_30_pairs_are_no_judgement(self):
        few = Compared.of("boot", "tiny", [2.0] * 29, [1.0] * 29)
        assert [each.is_met for each in compared_verdicts([few])] == [None]


class TestMachine:
    def test_deadline_allows_what_ends_in_time(self):
        assert Deadline().allows(1e9)
        soon = Deadline(minutes=2)
        assert soon.allows(60)
        assert not soon.allows(121)
        assert not Deadline(minutes=0).allows()

    def test_measured_processes_have_nobodys_settings(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PIXPOD_MODELS", "sdxl")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:/elsewhere")
        found = environment({"PIXPOD_DEVICE": "cpu"}, root=tmp_path)
        assert [name for name in found if name.startswith(("PIXPOD_", "AWS_"))] == ["PIXPOD_DEVICE"]
        assert found["PYTHONPATH"] == f"{tmp_path / 'src'}:/elsewhere"

    def test_date_and_versions_are_named(self):
        machine = describe_machine()
        assert machine["device"] == "cpu"
        assert str(machine["date"]).startswith("20")
        assert all(machine[package] for package in ("torch", "diffusers", "runpod"))


def test_last_line_and_files_are_what_is_printed(tmp_path, capsys):
    publish(tmp_path, "some", {"figure": math.pi}, "\na table\n")
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == {"figure": math.pi}
    assert (tmp_path / "some.txt").read_text() in printed
    assert json.loads((tmp_path / "some.json").read_text()) == {"figure": math.pi}


def test_nothing_but_their_own_tests_imports_the_benchmarks():
    own = (
        *("test_bench_", "test_gpu_", "test_cold_", "test_load_bench", "gpu_results", "emulator"),
        "test_stored_results_in_s3",  # measures a warm job
    )
    users = [
        str(path.relative_to(ROOT))
        for folder in ("src", "tests", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if re.search(r"^\s*(from|import) pixpod_bench\b", path.read_text(), re.MULTILINE)
        and not path.is_relative_to(ROOT / "src" / "pixpod_bench")
    ]
    in_gpu = [user for user in users if user.startswith("tests/gpu/")]
    others = [user for user in users if not any(name in user for name in own)]
    assert in_gpu + others == []
