"""The real SDK with an engine whose GPU never returns: the worker ends, its other jobs do not."""

from pathlib import Path

import pytest
from support.platform import call, submit, wait_for

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.testing import RunningEmulator, running_emulator, settings_for

pytestmark = pytest.mark.sdk

HANDLER = Path(__file__).resolve().parents[1] / "support" / "handlers" / "hanging_gpu.py"
BEHAVIOUR = Behaviour(ping_interval_s=1.0, heartbeat_timeout_s=120.0, min_execution_timeout_s=0)
JOB = {"input": {"model": "sdxl-tiny", "prompt": "a red circle"}}
LIMITED = {**JOB, "policy": {"executionTimeout": 5000}}
"""Milliseconds; the worker ends such a job a second before."""

REPORT = "fitness check host: device_unavailable:"
HANGS = "hangs"
LIMIT_S = 60


@pytest.fixture
def platform(tmp_path):
    settings = settings_for(
        HANDLER,
        tmp_path,
        behaviour=BEHAVIOUR,
        workers_min=1,
        workers_max=1,
        env={"BAD_HOST": str(tmp_path / "bad"), "GPU_HANGS": str(tmp_path / HANGS)},
    )
    with running_emulator(settings) as platform:
        yield platform


def are_taken(platform: RunningEmulator, *job_ids: str) -> bool:
    return all(platform.job(job_id)["executions"] for job_id in job_ids)


def reason_of(platform: RunningEmulator, worker_id: str) -> str:
    """Why the worker has ended."""

    def reason(state: dict) -> str:
        endpoint = state["endpoints"]["test"]
        workers = [*endpoint["workers"], *endpoint["retired"]]
        return next(each["reason"] or "" for each in workers if each["id"] == worker_id)

    return reason(platform.wait_until(lambda state: "exited" in reason(state), LIMIT_S))


@pytest.mark.parametrize("end", ["CANCELLED", "FAILED"])
def test_worker_whose_gpu_hangs_leaves_its_other_job_to_the_next_one(platform, tmp_path, end):
    hanging = submit(platform, LIMITED if end == "FAILED" else JOB)
    platform.wait_until(lambda state: (tmp_path / HANGS).exists(), LIMIT_S)
    other = submit(platform, JOB)
    platform.wait_until(lambda state: are_taken(platform, hanging, other), LIMIT_S)
    if end == "CANCELLED":
        call(platform, f"/cancel/{hanging}", {})
    assert wait_for(platform, hanging, LIMIT_S)["status"] == end
    assert wait_for(platform, other, LIMIT_S)["status"] == "COMPLETED"
    ended, moved = platform.job(hanging), platform.job(other)
    reason = reason_of(platform, ended["worker_id"])
    assert reason.startswith(f"{REPORT} the GPU has not returned 2 s after")
    assert ": exited with 1" in reason
    assert (ended["executions"], moved["executions"]) == (1, 2)
    assert moved["worker_id"] != ended["worker_id"]
