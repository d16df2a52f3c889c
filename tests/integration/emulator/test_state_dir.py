"""One state directory belongs to one emulator at a time, and does not grow without end."""

import os
from dataclasses import replace

import pytest
from support.endpoint_client import worked_by_hand
from support.platform import call

from runpod_emulator.errors import EmulatorError
from runpod_emulator.testing import running_emulator, settings_for
from runpod_emulator.workers.output import NUM_LOGS_KEPT, remove_old_logs


def test_second_emulator_is_refused_though_its_database_is_another(handlers, tmp_path):
    settings = settings_for(handlers / "many_sided.py", tmp_path / "state", workers_min=1)
    with running_emulator(settings) as first:
        call(first, "/runsync", {"input": {"do": "give"}})
        second = replace(settings, database=tmp_path / "other.db")
        with (
            pytest.raises(EmulatorError, match=r"expected no other emulator in it.*--state-dir"),
            running_emulator(second),
        ):
            pass
        environ = call(first, "/runsync", {"input": {"do": "report"}})["output"]["environ"]
        assert environ["HOME"] in {str(path) for path in (tmp_path / "state/workers").iterdir()}


def test_logs_of_workers_that_ended_long_ago_are_removed(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    for number in range(NUM_LOGS_KEPT + 50):
        log = logs / f"old{number}.log"
        log.touch()
        os.utime(log, (number, number))
    with worked_by_hand(tmp_path) as (_, _, worker):
        names = {path.name for path in logs.iterdir()}
    newest = {f"old{number}.log" for number in range(50, NUM_LOGS_KEPT + 50)}
    assert names == {f"{worker.id}.log", *newest}


def test_state_directory_is_free_after_a_start_that_failed(handlers, tmp_path):
    settings = settings_for(handlers / "silent.py", tmp_path)
    with pytest.raises(EmulatorError), running_emulator(replace(settings, host="192.0.2.1")):
        pass
    with running_emulator(settings):
        pass


def test_logs_of_living_workers_stay_however_old_they_are(tmp_path):
    for number in range(5):
        for name in (f"w{number}.log", f"w{number}.log.1"):
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (number, number))
    remove_old_logs(tmp_path, living={"w0"}, keep=2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"w0.log", "w0.log.1", "w4.log", "w4.log.1"}
