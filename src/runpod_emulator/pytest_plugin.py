"""A pytest plugin: the fixture `runpod_emulator`, one emulator for the whole test run.

It imports the emulator for the first test that uses it, because every run of pytest loads this
module.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from runpod_emulator.settings import EmulatorSettings
    from runpod_emulator.testing import RunningEmulator


@pytest.fixture(scope="session")
def runpod_emulator_settings(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> "EmulatorSettings":
    """Return the settings of `runpod_emulator`: the project's handler on one active worker.

    A fixture of the same name in a conftest.py replaces it.
    """
    from runpod_emulator.command_line.project import find_handler
    from runpod_emulator.testing import settings_for

    return settings_for(
        find_handler(pytestconfig.rootpath),
        tmp_path_factory.mktemp("runpod_emulator"),
        workers_min=1,
        workers_max=1,
    )


@pytest.fixture(scope="session")
def runpod_emulator(runpod_emulator_settings: "EmulatorSettings") -> "Iterator[RunningEmulator]":
    """Yield an emulator, whose workers start once and serve all tests of the session."""
    from runpod_emulator.testing import running_emulator

    with running_emulator(runpod_emulator_settings) as emulator:
        yield emulator
