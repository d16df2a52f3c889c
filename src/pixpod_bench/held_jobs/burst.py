"""A burst of jobs on an endpoint of the emulator, and what became of it."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests

from pixpod_bench.figures import percentile
from pixpod_bench.held_jobs.handler import HANDLER, WorkerSpec
from runpod_emulator.settings import EmulatorSettings, Scaler
from runpod_emulator.testing import RunningEmulator, running_emulator, settings_for

POLL_S = 0.1
LIMIT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An endpoint: how it scales, and what its workers are."""

    scaler: Scaler
    num_workers: int
    worker: WorkerSpec
    scaler_value: float = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Seconds from submission to the end of a job, and of the whole burst.

    `num_left_out` are workers that asked for jobs while some waited, and never got one.
    """

    p50_s: float
    p95_s: float
    all_s: float
    jobs_by_worker: tuple[int, ...]
    num_left_out: int


def emulate(places: Mapping[str, Place], directory: Path) -> EmulatorSettings:
    """One emulator with an endpoint for each place, none of which has a worker yet."""
    settings = [
        settings_for(
            HANDLER,
            directory,
            endpoint_id=name,
            rate_limits=False,
            workers_max=place.num_workers,
            scaler=place.scaler,
            scaler_value=place.scaler_value,
            env=place.worker.environ(),
        )
        for name, place in places.items()
    ]
    endpoints = tuple(each.endpoints[0] for each in settings)
    return replace(settings[0], endpoints=endpoints)


def run_bursts(
    places: Mapping[str, Place], directory: Path, *, num_jobs: int, steps: int
) -> dict[str, Outcome]:
    """The same burst on all places at the same time. Raises TimeoutError, AssertionError."""
    with running_emulator(emulate(places, directory)) as emulator:
        with ThreadPoolExecutor(len(places)) as threads:
            submitted = {
                name: threads.submit(submit, emulator, name, num_jobs, steps) for name in places
            }
            job_ids = {name: future.result() for name, future in submitted.items()}
        wait_for_all(emulator, job_ids)
        return {name: _outcome(emulator, name, ids) for name, ids in job_ids.items()}


def submit(
    emulator: RunningEmulator, endpoint_id: str, num_jobs: int, steps: int
) -> tuple[str, ...]:
    """Ids of jobs that were submitted one after the other as fast as they are taken."""
    given = {"model": "sdxl-tiny", "prompt": "a red circle", "num_inference_steps": steps}
    body = {"input": given | {"output": {"delivery": "inline"}}}
    return tuple(_post(emulator, f"/{endpoint_id}/run", body)["id"] for _ in range(num_jobs))


def wait_for_all(emulator: RunningEmulator, job_ids: Mapping[str, Sequence[str]]) -> None:
    """Raises TimeoutError; AssertionError for a job that ended otherwise than COMPLETED."""
    deadline = time.monotonic() + LIMIT_S
    waiting = [job_id for ids in job_ids.values() for job_id in ids]
    while waiting:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(waiting)} jobs have not ended after {LIMIT_S:.0f} s")
        time.sleep(POLL_S)
        assert not emulator.state()["hazards"]["counts"], "a worker breaks its word"
        details = emulator.job(waiting[-1])
        assert details["status"] in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED"), details["error"]
        if details["status"] == "COMPLETED":
            waiting.pop()


def _outcome(emulator: RunningEmulator, endpoint_id: str, job_ids: Sequence[str]) -> Outcome:
    jobs = [emulator.job(job_id) for job_id in job_ids]
    assert all(job["executions"] == 1 for job in jobs), "a job was lost"
    seconds = sorted((job["delay_ms"] + job["execution_ms"]) / 1e3 for job in jobs)
    by_worker = Counter(job["worker_id"] for job in jobs)
    return Outcome(
        p50_s=percentile(seconds, 50),
        p95_s=percentile(seconds, 95),
        all_s=seconds[-1],
        jobs_by_worker=tuple(sorted(by_worker.values(), reverse=True)),
        num_left_out=_num_left_out(emulator.state()["endpoints"][endpoint_id], jobs),
    )


def _num_left_out(endpoint: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> int:
    """Any: JSON documents."""
    last_taken_at = max(job["created_at"] + job["delay_ms"] / 1e3 for job in jobs)
    with_jobs = {job["worker_id"] for job in jobs}
    return sum(
        worker["ready_at"] is not None and worker["ready_at"] < last_taken_at
        for worker in (*endpoint["workers"], *endpoint["retired"])
        if worker["id"] not in with_jobs
    )


def _post(emulator: RunningEmulator, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Any: a JSON document."""
    headers = {"Authorization": f"Bearer {emulator.api_key}"}
    with requests.Session() as http:
        http.trust_env = False  # a proxy does not know this machine
        reply = http.post(f"{emulator.base_url}{path}", json=body, headers=headers, timeout=60)
        reply.raise_for_status()
        answer: dict[str, Any] = reply.json()
        return answer
