"""Tests of a program that is missing: skipped here, failed in CI."""

import pytest
from support.missing import end_test_without


def test_missing_program_skips_the_test_with_its_name(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="not installed: podman"):
        end_test_without("podman")


def test_missing_program_fails_the_test_in_ci(monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI must provide podman"):
        end_test_without("podman")
