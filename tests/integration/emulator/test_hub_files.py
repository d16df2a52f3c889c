"""Hub test files of every kind, run from end to end by `runpod-emulator test`."""

import json
import re
import sys
from pathlib import Path

import pytest

from pixpod_bench.emulator import stub_worker
from runpod_emulator.command_line.cli import main

HUB_FILES = sorted((Path(__file__).resolve().parents[2] / "support" / "hub_files").glob("*.json"))
NUM_NOT_RUN = {"11_load_balancer": 1}


def test_there_are_twelve():
    assert len(HUB_FILES) == 12


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.stem)
def test_file_runs(path, capsys):
    """The worker is one without the SDK, which starts at once and returns its input."""
    command = ["--", sys.executable, str(stub_worker.__file__)]
    status = main(["test", "--tests", str(path), *command])
    report = capsys.readouterr().out
    assert status == 0, report
    not_run = NUM_NOT_RUN.get(path.stem, 0)
    num_tests = len(json.loads(path.read_text(encoding="utf-8"))["tests"]) - not_run
    assert len(re.findall(r"^ok +", report, re.MULTILINE)) == num_tests
    assert f"\n{num_tests} of {num_tests} passed" in report
    assert (f", {not_run} not run" in report) is bool(not_run)
