"""The file that lets a benchmark go on where an earlier call ended."""

import json
from pathlib import Path

import pytest
from support.gpu_results import LOAD, MEMORY, ROW, STACK, TESTS

from pixpod_bench.gpu.results import (
    Entry,
    Failure,
    Journal,
    OtherMachine,
    Result,
)

MACHINE = {"device": "NVIDIA H100 80GB HBM3", "torch": "2.13.0", "driver": "580"}

RESULTS: list[Result] = [ROW, MEMORY, LOAD, STACK, TESTS, Failure(reason="RuntimeError: broken")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gpu.jsonl"


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_results_come_back_as_they_were(path, result):
    journal = Journal.continued(path, MACHINE)
    assert journal.begin("flux", "one")
    journal.add("flux", "one", result)
    again = Journal.continued(path, MACHINE)
    assert list(again.entries()) == [Entry(slice="flux", scenario="one", result=result)]
    assert again.has("flux", "one")
    assert not again.has("sdxl", "one")
    assert not again.has("flux", "two")


def test_line_that_was_cut_off_is_no_result(path):
    journal = Journal.continued(path, MACHINE)
    journal.add("flux", "one", MEMORY)
    journal.add("flux", "two", MEMORY)
    path.write_text(path.read_text()[:-30])
    again = Journal.continued(path, MACHINE)
    assert [entry.scenario for entry in again.entries()] == ["one"]
    again.add("flux", "two", MEMORY)
    assert len(list(Journal(path).entries())) == 2


def test_scenario_that_ended_two_processes_is_not_tried_again(path):
    for _ in range(2):
        assert Journal.continued(path, MACHINE).begin("flux", "deadly")
    journal = Journal.continued(path, MACHINE)
    assert not journal.begin("flux", "deadly")
    (entry,) = Journal(path).entries()
    assert entry.result == Failure(reason="the process ended twice while it ran")


@pytest.mark.parametrize("fact", ["device", "torch"])
def test_figures_of_another_machine_are_not_mixed_in(path, fact):
    Journal.continued(path, MACHINE)
    with pytest.raises(OtherMachine, match=r"got results of NVIDIA H100 80GB HBM3 with 2\.13\.0"):
        Journal.continued(path, {**MACHINE, fact: "other"})


def test_another_driver_may_go_on(path):
    Journal.continued(path, MACHINE)
    assert Journal.continued(path, {**MACHINE, "driver": "590"}).machine == MACHINE


def test_journal_that_is_not_there_tells_no_machine(path):
    assert Journal(path).machine == {}
    assert not path.exists()


def test_each_line_is_json(path):
    journal = Journal.continued(path, MACHINE)
    for result in RESULTS:
        journal.begin("flux", type(result).__name__)
        journal.add("flux", type(result).__name__, result)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 1 + 2 * len(RESULTS)
