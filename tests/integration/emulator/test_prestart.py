"""Prestart hooks of SDK 2.0: what jobs see of them, and what the emulator reports."""

import json
from contextlib import ExitStack
from dataclasses import replace

import pytest
from support.platform import submit, wait_for
from support.sdk2 import sdk2_environ

from runpod_emulator.testing import QUICK, running_emulator, settings_for

BEHAVIOUR = replace(QUICK, min_execution_timeout_s=0.5)


@pytest.fixture(scope="module")
def jobs(handlers, tmp_path_factory):
    """A platform and its first job, by what the hook does; all of them start at once."""
    with ExitStack() as stack:
        started = {}
        for hook, policy in {"3": {}, "60": {"executionTimeout": 2000}, "fails": {}}.items():
            settings = settings_for(
                handlers / "prestart.py",
                tmp_path_factory.mktemp("prestart"),
                behaviour=BEHAVIOUR,
                workers_max=1,
                env={"HOOK": hook, **sdk2_environ()},
            )
            platform = stack.enter_context(running_emulator(settings))
            started[hook] = platform, submit(platform, {"input": {"n": 1}, "policy": policy})
        yield started


def test_job_is_taken_at_once_and_waits_for_the_hook(jobs):
    platform, job_id = jobs["3"]
    status = wait_for(platform, job_id)
    assert status["output"] == {"ready": ["weights"], "sdk": "2.0.0rc2"}
    assert status["executionTime"] > 2000


def test_hook_counts_as_execution_time(jobs):
    platform, job_id = jobs["60"]
    status = wait_for(platform, job_id)
    assert (status["status"], status["error"]) == ("FAILED", "executionTimeout exceeded")


def test_failing_hook_fails_a_job_with_its_cause_and_is_a_crash_loop(jobs):
    platform, job_id = jobs["fails"]
    error = json.loads(wait_for(platform, job_id)["error"])
    assert (error["event"], error["error_message"]) == ("prestart_failed", "no weights found")
    state = platform.wait_until(lambda state: state["endpoints"]["test"]["failures_in_a_row"])
    (hazard,) = state["hazards"]["recent"]
    assert hazard["kind"] == "crash-loop"
    assert hazard["message"].startswith("prestart hook failed: exited with 1")
