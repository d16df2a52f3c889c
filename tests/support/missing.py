"""Ends tests of what is not installed: skipped on a developer's machine, failed in CI."""

import os
from typing import NoReturn

import pytest


def end_test_without(what: str) -> NoReturn:
    """Skip, or fail where CI is set: there everything must be installed."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must provide {what}")
    pytest.skip(f"not installed: {what}")
