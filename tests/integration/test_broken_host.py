"""One bad host cannot drain the queue: its workers take no job, and are replaced ever slower."""

import itertools
from pathlib import Path

import pytest
from support.broken_weights import MODEL, broken_copy, copy_weights
from support.platform import call, submit, wait_for

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.testing import RunningEmulator, running_emulator, settings_for

ROOT = Path(__file__).resolve().parents[2]
ONE_BAD_HOST = ROOT / "tests" / "support" / "handlers" / "one_bad_host.py"
STARVED = Behaviour(ping_interval_s=1.0, heartbeat_timeout_s=60.0)
"""With the platform's one retry of a lost job. Test machines have few cores."""

LIMIT_S = 240
REPORT = "fitness check host: "
JOB = {
    "model": MODEL,
    "prompt": "a red circle on a blue background",
    "width": 32,
    "height": 32,
    "num_inference_steps": 1,
    "output": {"delivery": "inline"},
}


@pytest.fixture
def start(tmp_path):
    def make(how, handler=ONE_BAD_HOST, **endpoint):
        env = {
            "OMP_NUM_THREADS": "1",
            "BAD_HOST": str(tmp_path / "lock"),
            "BAD_WEIGHTS": str(broken_copy(how, tmp_path / "bad")),
            "PIXPOD_WEIGHTS_DIR": str(copy_weights(tmp_path / "good")),
        }
        if handler is not ONE_BAD_HOST:
            env["PIXPOD_WEIGHTS_DIR"] = env["BAD_WEIGHTS"]
        settings = settings_for(
            handler,
            tmp_path / "state",
            behaviour=STARVED,
            workers_min=2,
            workers_max=2,
            rate_limits=False,
            env=env,
            **endpoint,
        )
        return running_emulator(settings)

    return make


def endpoint_of(platform: RunningEmulator) -> dict:
    return platform.state()["endpoints"]["test"]


def left_workers(platform: RunningEmulator) -> list[dict]:
    """Those that have left a bad host, the first one first."""
    endpoint = endpoint_of(platform)
    workers = [*endpoint["workers"], *endpoint["retired"]]
    left = [worker for worker in workers if (worker["reason"] or "").startswith(REPORT)]
    return sorted(left, key=lambda worker: worker["created_at"])


def pauses_s(left: list[dict]) -> list[float]:
    """From the end of each worker to when its place may be filled again."""
    lives_s = (
        sum(worker["bill"][part] for part in ("start_s", "run_s", "idle_s")) for worker in left
    )
    return [
        worker["retry_at"] - worker["created_at"] - life_s
        for worker, life_s in zip(left, lives_s, strict=True)
    ]


def submit_all(platform: RunningEmulator, count: int) -> list[str]:
    return [submit(platform, {"input": JOB | {"seed": seed}}) for seed in range(count)]


def test_broken_worker_takes_no_job_and_is_replaced_ever_slower(start):
    with start("flipped byte") as platform:
        ids = submit_all(platform, 50)
        statuses = [wait_for(platform, job_id, LIMIT_S) for job_id in ids]
        platform.wait_until(
            lambda state: state["endpoints"]["test"]["failures_in_a_row"] >= 3, LIMIT_S
        )
        jobs = [platform.job(job_id) for job_id in ids]
        left = left_workers(platform)
    assert {status["status"] for status in statuses} == {"COMPLETED"}
    assert {job["executions"] for job in jobs} == {1}, "none was lost on the bad host"
    assert len({job["worker_id"] for job in jobs}) == 1
    assert len(left) >= 3
    for worker in left:
        assert "weights_unreadable: " in worker["reason"]
        assert ": exited with 1; " in worker["reason"]
        assert worker["num_results"] == 0
    pauses = pauses_s(left)
    assert pauses == sorted(pauses)
    assert pauses[2] > 2 * pauses[0]
    for earlier, later in itertools.pairwise(left):
        assert later["created_at"] >= earlier["retry_at"]


def test_damage_that_shows_late_gives_jobs_back(start):
    """Files that nobody has listed are not checked: only loading finds out, with a job taken."""
    with start("unlisted header") as platform:
        ids = submit_all(platform, 50)
        statuses = [wait_for(platform, job_id, LIMIT_S) for job_id in ids]
        platform.wait_until(lambda state: left_workers(platform), LIMIT_S)
        jobs = [platform.job(job_id) for job_id in ids]
        left = left_workers(platform)
    assert {status["status"] for status in statuses} == {"COMPLETED"}
    assert sum(job["retries"] for job in jobs) >= 1, "the damage was to show with a job taken"
    assert all(job["executions"] == 1 + job["retries"] for job in jobs)
    assert {worker["num_results"] for worker in left} == {0}
    assert "weights_unreadable: " in left[0]["reason"]


def test_jobs_wait_while_every_host_is_broken(start):
    with start("short file", ROOT / "handler.py") as platform:
        ids = submit_all(platform, 3)
        platform.wait_until(
            lambda state: state["endpoints"]["test"]["failures_in_a_row"] >= 4, LIMIT_S
        )
        jobs = [platform.job(job_id) for job_id in ids]
        left = left_workers(platform)
        for job_id in ids:
            call(platform, f"/cancel/{job_id}", {})
    assert {job["status"] for job in jobs} == {"IN_QUEUE"}
    assert {job["executions"] for job in jobs} == {0}
    assert len(left) >= 4
    assert pauses_s(left)[-1] > 2 * pauses_s(left)[0]
