"""The unmodified npm package `runpod-sdk`: every method, with the platform's rate limits."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.missing import end_test_without

from runpod_emulator.testing import running_emulator, settings_for

SCRIPT = Path(__file__).resolve().parents[2] / "support" / "javascript" / "every_method.js"


@pytest.fixture(scope="module")
def answers(handlers, tmp_path_factory):
    """What each method returned, by its name."""
    node = shutil.which("node")
    if node is None or not SCRIPT.with_name("node_modules").is_dir():
        end_test_without("node and runpod-sdk (npm; scripts/setup)")
    chosen = settings_for(
        handlers / "many_sided.py", tmp_path_factory.mktemp("javascript"), workers_min=1
    )
    (test,) = chosen.endpoints
    generator = (*test.command[:-1], str(handlers / "generator.py"))
    items = replace(test, id="items", command=generator)
    stuck = replace(test, id="stuck", workers_min=0, workers_max=0)
    with running_emulator(replace(chosen, endpoints=(test, items, stuck))) as emulator:
        command = [node, str(SCRIPT), emulator.base_url, emulator.api_key]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_stream_of_a_long_job_stays_below_the_rate_limit(answers):
    assert answers["stream"]["found"] == ["a", "b", "c", "d"]
    assert answers["stream"]["seconds"] > 6


def test_run_status_and_status_sync_show_the_same_job(answers):
    assert answers["run"]["status"] == "IN_QUEUE"
    for method in ("statusSync", "status"):
        seen = answers[method]
        assert (seen["id"], seen["output"]) == (answers["run"]["id"], {"image": "ü"})
        assert (seen["started"], seen["completed"], seen["succeeded"]) == (True, True, True)


def test_run_sync_returns_the_result(answers):
    assert answers["runSync"]["output"] == {"image": "ü"}
    assert answers["runSync"]["succeeded"] is True


def test_run_sync_waits_on_when_the_platform_has_stopped_waiting(answers):
    assert answers["runSyncPolls"]["output"] == "slept"


def test_failed_job_has_an_error_and_has_not_succeeded(answers):
    failed = answers["failed"]
    assert (failed["status"], failed["completed"], failed["succeeded"]) == ("FAILED", True, False)
    assert json.loads(failed["error"])["error_message"] == "broken"


def test_cancel_health_and_purge_queue(answers):
    assert answers["cancel"]["status"] == "CANCELLED"
    assert answers["health"]["jobs"]["inQueue"] == 1
    assert answers["purgeQueue"] == {"removed": 1, "status": "completed"}


def test_refusals_are_errors_with_the_status(answers):
    assert answers["errors"] == {
        "key": "Request failed with status code 401",
        "job": "Request failed with status code 404",
    }


def test_lockfile_names_no_registry():
    lock = json.loads(SCRIPT.with_name("package-lock.json").read_text(encoding="utf-8"))
    assert len(lock["packages"]) > 1
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]
