"""Deaths with a job are no crash loop, starts without one are: what is reported, and the pauses."""

import json
import os
import signal
from contextlib import contextmanager

import pytest
from support.endpoint_client import HandWorker, until, worked_by_hand


@pytest.fixture
def by_hand(tmp_path):
    with worked_by_hand(tmp_path, max_retries=0) as parts:
        yield parts


def endpoint_of(emulator):
    return emulator.state()["endpoints"]["test"]


def hazards_of(emulator, kind):
    return [each for each in emulator.state()["hazards"]["recent"] if each["kind"] == kind]


def kill(emulator, worker, number=signal.SIGKILL):
    """Let the worker die behind the emulator's back, and wait until it has seen that."""
    found = {each["id"]: each["pid"] for each in endpoint_of(emulator)["workers"]}
    os.kill(found[worker.id], number)
    until(lambda: worker.id not in {each["id"] for each in endpoint_of(emulator)["workers"]})


def kill_left(emulator):
    """Let the only worker die; its place stays empty for a time."""
    (pid,) = (each["pid"] for each in endpoint_of(emulator)["workers"])
    os.kill(pid, signal.SIGKILL)


def test_deaths_with_a_job_are_no_crash_loop_and_delay_no_other_job(by_hand):
    emulator, client, worker = by_hand
    poisoned = [client.submit() for _ in range(4)]
    good = client.submit()
    for job_id in poisoned:
        assert worker.take()["id"] == job_id
        kill(emulator, worker)
        worker = HandWorker(emulator)
    assert endpoint_of(emulator)["failures_in_a_row"] == 0
    assert hazards_of(emulator, "crash-loop") == []
    assert worker.take()["id"] == good
    worker.done(good, output="here")
    assert client.wait_for(good, "COMPLETED")["output"] == "here"
    assert [each["job_id"] for each in hazards_of(emulator, "killed-worker")] == poisoned[::-1]


@pytest.mark.parametrize(
    ("number", "ending"),
    [
        (signal.SIGKILL, "ended by signal 9 (most often out of memory) while it ran this job: "),
        (signal.SIGSEGV, "ended by signal 11 (a crash in native code) while it ran this job: "),
    ],
)
def test_death_with_a_job_names_the_job_and_the_signal(by_hand, number, ending):
    emulator, client, worker = by_hand
    job_id = client.submit()
    worker.take()
    kill(emulator, worker, number)
    (hazard,) = hazards_of(emulator, "killed-worker")
    assert (hazard["job_id"], hazard["worker_id"]) == (job_id, worker.id)
    assert hazard["message"].startswith(f"worker {ending}")


def test_death_with_a_job_names_the_exit_code(tmp_path):
    command = ("sh", "-c", "trap 'exit 7' TERM; echo started; while :; do sleep 0.05; done")
    with worked_by_hand(tmp_path, command=command) as (emulator, client, worker):
        job_id = client.submit()
        worker.take()
        kill(emulator, worker, signal.SIGTERM)
        (hazard,) = hazards_of(emulator, "killed-worker")
        assert hazard["job_id"] == job_id
        assert hazard["message"].startswith("worker exited with 7 while it ran this job: ")


def test_worker_that_the_emulator_ends_is_no_hazard(by_hand):
    emulator, client, worker = by_hand
    emulator.add_fault(at="job-taken", action="kill", count=1)
    client.submit()
    worker.take()
    until(lambda: worker.id not in {each["id"] for each in endpoint_of(emulator)["workers"]})
    assert hazards_of(emulator, "killed-worker") == []


def test_unfit_worker_is_a_crash_loop_though_it_has_a_job(by_hand):
    """Its host is bad: it leaves its job to another worker."""
    emulator, client, worker = by_hand
    client.submit()
    worker.take()
    worker.request("GET", f"/ping/{worker.id}?status=unhealthy&check=host&reason=damaged")
    kill_left(emulator)
    hazard = until(lambda: hazards_of(emulator, "crash-loop"))[0]
    assert "fitness check host: damaged" in hazard["message"]
    assert hazards_of(emulator, "killed-worker") == []


@contextmanager
def worker_with_failing_hook(tmp_path):
    """Its prestart hook has failed: as SDK 2.0, it fails one job with the reason and exits."""
    with worked_by_hand(tmp_path) as (emulator, client, worker):
        job_id = client.submit()
        worker.take()
        error = {"event": "prestart_failed", "error_type": "OSError", "hook": "load"}
        worker.done(job_id, error=json.dumps(error))
        assert client.wait_for(job_id, "FAILED")
        yield emulator, worker


def test_failing_prestart_hook_is_a_crash_loop_though_its_worker_is_drained(tmp_path):
    """As it happens when no other job waits."""
    with worker_with_failing_hook(tmp_path) as (emulator, worker):
        fleet = emulator.gateway.endpoints["test"].fleet
        fleet.drain(fleet.find(worker.id), "idle")
        hazard = until(lambda: hazards_of(emulator, "crash-loop"))[0]
        assert hazard["worker_id"] == worker.id
        assert hazard["message"].startswith("prestart hook failed: ended by signal 15")


def test_failing_prestart_hook_is_a_crash_loop(tmp_path):
    with worker_with_failing_hook(tmp_path) as (emulator, worker):
        kill_left(emulator)
        hazard = until(lambda: hazards_of(emulator, "crash-loop"))[0]
        assert hazard["worker_id"] == worker.id
        assert "prestart hook failed" in hazard["message"]
        assert endpoint_of(emulator)["failures_in_a_row"] == 1
