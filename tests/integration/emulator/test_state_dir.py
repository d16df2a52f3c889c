"""One state directory belongs to one emulator at a time, and does not grow without end."""

from dataclasses import replace

import pytest
from support.platform import call

from runpod_emulator.errors import EmulatorError
from runpod_emulator.testing import running_emulator, settings_for


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


def test_state_directory_is_free_after_a_start_that_failed(handlers, tmp_path):
    settings = settings_for(handlers / "silent.py", tmp_path)
    with pytest.raises(EmulatorError), running_emulator(replace(settings, host="192.0.2.1")):
        pass
    with running_emulator(settings):
        pass
