"""Workers that run several jobs at once, with the real SDK on the emulated platform.

The worker is the product's, its engine a clock.
"""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import quantiles

import pytest
from support.platform import submit

from pixpod.testing.scripted_engine import ScriptedTimes
from pixpod.testing.scripted_worker import HANDLER, ScriptedWorker
from runpod_emulator.settings import Scaler
from runpod_emulator.testing import running_emulator, settings_for

NUM_JOBS = 48
NUM_WORKERS = 3
LIMIT_S = 300
SCALER_VALUES = {Scaler.QUEUE_DELAY: 1.0, Scaler.REQUEST_COUNT: 4.0}
CONCURRENCY = {"one": 1, "nine": 9}

TIMES = ScriptedTimes(batch_s=0.28, image_s=0.22, max_batch_size=8, load_s=0.5)
"""A few-step model, which has the highest concurrency. It is so slow that two workers alone would
need six seconds: the third has come by then, although twelve start at a time.
"""

JOB = {"input": {"model": "sdxl-tiny", "prompt": "a red circle", "num_inference_steps": 4}}


@dataclass(frozen=True)
class Outcome:
    """`num_left_out` are workers that asked while jobs waited, and never got one."""

    p95_s: float
    jobs_by_worker: Counter
    num_left_out: int


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The same burst at the same time on four endpoints, by scaler and concurrency."""
    directory = tmp_path_factory.mktemp("bursts")
    each = [
        settings_for(
            HANDLER,
            directory,
            endpoint_id=f"{scaler}-{name}",
            rate_limits=False,
            workers_max=NUM_WORKERS,
            scaler=scaler,
            scaler_value=value,
            env=ScriptedWorker(times=TIMES, max_concurrency=concurrency).environ(),
        )
        for scaler, value in SCALER_VALUES.items()
        for name, concurrency in CONCURRENCY.items()
    ]
    endpoints = tuple(settings.endpoints[0] for settings in each)
    with running_emulator(replace(each[0], endpoints=endpoints)) as emulator:
        with ThreadPoolExecutor(len(endpoints)) as threads:
            ids = threads.map(lambda e: burst(emulator, e.id), endpoints)
        return {e.id: outcome(emulator, e.id, each) for e, each in zip(endpoints, ids, strict=True)}


def burst(emulator, endpoint_id):
    return [submit(emulator, JOB, endpoint_id=endpoint_id) for _ in range(NUM_JOBS)]


def outcome(emulator, endpoint_id, job_ids):
    deadline = time.monotonic() + LIMIT_S
    while any(emulator.job(job_id)["status"] != "COMPLETED" for job_id in job_ids):
        assert time.monotonic() < deadline, "not all jobs have ended"
        time.sleep(0.2)
    jobs = [emulator.job(job_id) for job_id in job_ids]
    state = emulator.state()
    assert not state["hazards"]["counts"], "a worker breaks its word"
    assert all(job["executions"] == 1 for job in jobs), "a job was lost"
    by_worker = Counter(job["worker_id"] for job in jobs)
    last_taken_at = max(job["created_at"] + job["delay_ms"] / 1e3 for job in jobs)
    endpoint = state["endpoints"][endpoint_id]
    return Outcome(
        p95_s=quantiles([(j["delay_ms"] + j["execution_ms"]) / 1e3 for j in jobs], n=20)[-1],
        jobs_by_worker=by_worker,
        num_left_out=sum(
            worker["ready_at"] is not None
            and worker["ready_at"] < last_taken_at
            and worker["id"] not in by_worker
            for worker in (*endpoint["workers"], *endpoint["retired"])
        ),
    )


@pytest.mark.parametrize("scaler", Scaler)
def test_all_workers_get_work_although_each_runs_several_jobs(outcomes, scaler):
    found = outcomes[f"{scaler}-nine"]
    assert len(found.jobs_by_worker) == NUM_WORKERS
    assert found.jobs_by_worker.total() == NUM_JOBS
    assert found.num_left_out == 0


@pytest.mark.parametrize("scaler", Scaler)
def test_slowest_jobs_are_not_slower_than_one_by_one(outcomes, scaler):
    assert outcomes[f"{scaler}-nine"].p95_s <= outcomes[f"{scaler}-one"].p95_s
