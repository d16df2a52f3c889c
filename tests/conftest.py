"""For every test: an environment that says nothing about this machine."""

import logging
import os

import pytest
from hypothesis import settings

settings.register_profile("pixpod", deadline=None)  # machines that run tests are shared
settings.load_profile("pixpod")

OUR_PREFIXES = ("PIXPOD_", "RUNPOD_", "AWS_", "BUCKET_")


@pytest.fixture(autouse=True)
def scrubbed_environment(monkeypatch):
    for name in os.environ:
        if name.startswith(OUR_PREFIXES):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def restored_logging():
    """A handler that a test leaves behind writes to a stream that pytest has closed."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
