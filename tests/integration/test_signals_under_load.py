"""Workers that get SIGTERM at random moments while they serve: every job is run once."""

import os
import random
import signal
import time
from collections import Counter

import pytest
from support.platform import submit, wait_for
from support.sdk2 import sdk2_environ

from pixpod.testing.scripted_engine import ScriptedTimes
from pixpod.testing.scripted_worker import HANDLER, ScriptedWorker
from runpod_emulator.testing import RunningEmulator, running_emulator, settings_for

WORKER = ScriptedWorker(
    times=ScriptedTimes(batch_s=0.3, image_s=0.1, max_batch_size=2), max_concurrency=3
)
NUM_WORKERS = 2
LIMIT_S = 60
SEED = 15


def run(platform: RunningEmulator, num_signals: int) -> tuple[list[dict], set[str]]:
    """The jobs as the emulator has them, and the reasons for which signalled workers have gone."""
    moments, signalled, ids = random.Random(SEED), set[str](), []
    for _ in range(num_signals):
        worker = next_worker(platform, signalled)
        ids += [ask(platform) for _ in range(moments.randint(2, 6))]
        time.sleep(moments.uniform(0, 1.5))
        signalled.add(worker["id"])
        os.kill(worker["pid"], signal.SIGTERM)
    ids += [ask(platform) for _ in range(4)]
    for job_id in ids:
        wait_for(platform, job_id)
    left = platform.wait_until(lambda state: signalled <= reasons(state).keys(), LIMIT_S)
    return [platform.job(job_id) for job_id in ids], {reasons(left)[each] for each in signalled}


def ask(platform: RunningEmulator) -> str:
    given = {"model": "sdxl-tiny", "prompt": "a red circle", "num_inference_steps": 4}
    return submit(platform, {"input": given})


def next_worker(platform: RunningEmulator, signalled: set[str]) -> dict:
    """One that has run a job and was not signalled yet; there is work until there is one."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        for worker in platform.state()["endpoints"]["test"]["workers"]:
            if worker["id"] not in signalled and worker["num_results"]:
                return worker
        assert time.monotonic() < deadline
        wait_for(platform, ask(platform))


def reasons(state: dict) -> dict[str, str]:
    return {worker["id"]: worker["reason"] for worker in state["endpoints"]["test"]["retired"]}


def assert_nothing_is_lost(tmp_path, num_signals: int, **env: str) -> str:
    """Returns a line of a table."""
    settings = settings_for(
        HANDLER,
        tmp_path,
        rate_limits=False,
        workers_min=NUM_WORKERS,
        workers_max=NUM_WORKERS,
        env={**WORKER.environ(), **env},
    )
    with running_emulator(settings) as platform:
        jobs, ends = run(platform, num_signals)
        hazards = platform.state()["hazards"]["counts"]
    assert Counter(job["status"] for job in jobs) == {"COMPLETED": len(jobs)}
    assert Counter(job["executions"] for job in jobs) == {1: len(jobs)}
    assert hazards == {}, "a worker left while it had a job"
    assert all("exited with 0" in end for end in ends), ends
    return f"{num_signals:7} {len(jobs):5}"


@pytest.mark.sdk
def test_signals_lose_no_job(tmp_path):
    assert_nothing_is_lost(tmp_path, 8)


@pytest.mark.acceptance
def test_many_signals_lose_no_job(tmp_path):
    print(f"\n{'SDK':5} signals  jobs")
    for version, env in {"1.12": {}, "2.0": sdk2_environ()}.items():
        folder = tmp_path / version
        folder.mkdir()
        print(f"{version:5} {assert_nothing_is_lost(folder, 100, **env)}")
