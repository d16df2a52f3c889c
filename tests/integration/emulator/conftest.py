"""The emulator with a real SDK worker, shared by all tests that neither end nor block it."""

from pathlib import Path

import pytest

from runpod_emulator.testing import running_emulator, settings_for

HANDLERS = Path(__file__).resolve().parents[2] / "support" / "handlers"


@pytest.fixture(scope="session")
def handlers():
    """The folder of the handlers that tests run."""
    return HANDLERS


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """Endpoint `test` with one worker that is always there and does what its input says.

    `{"do": "give", "value": 1}` returns 1; `support/handlers/many_sided.py` has the others.
    """
    state_dir = tmp_path_factory.mktemp("emulator")
    handler = HANDLERS / "many_sided.py"
    with running_emulator(settings_for(handler, state_dir, workers_min=1, workers_max=1)) as it:
        yield it
