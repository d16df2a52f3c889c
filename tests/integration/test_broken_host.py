"""One bad host among good ones cannot drain the queue, and costs ever less."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.broken_weights import MODEL, broken_copy, copy_weights
from support.platform import call, submit, wait_for

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.settings import EmulatorSettings
from runpod_emulator.testing import RunningEmulator, running_emulator, settings_for

ROOT = Path(__file__).resolve().parents[2]
ONE_BAD_HOST = ROOT / "tests" / "support" / "handlers" / "one_bad_host.py"
STARVED = Behaviour(ping_interval_s=1.0, heartbeat_timeout_s=120.0)
"""With the platform's one retry of a lost job. Test machines have few cores."""

LIMIT_S = 300
REPORT = "fitness check host: "
JOB = {
    "model": MODEL,
    "prompt": "a red circle on a blue background",
    "width": 32,
    "height": 32,
    "num_inference_steps": 1,
    "output": {"delivery": "inline"},
}


def two_workers(handler: Path, state_dir: Path, **env: Path) -> EmulatorSettings:
    return settings_for(
        handler,
        state_dir,
        behaviour=STARVED,
        workers_min=2,
        workers_max=2,
        rate_limits=False,
        env={"OMP_NUM_THREADS": "1", **{name: str(path) for name, path in env.items()}},
    )


def left_workers(platform: RunningEmulator) -> list[dict]:
    """Those that have left their host, the first one first."""
    endpoint = platform.state()["endpoints"]["test"]
    workers = [*endpoint["workers"], *endpoint["retired"]]
    left = [
        worker
        for worker in workers
        if (worker["reason"] or "").startswith(REPORT) and worker["retry_at"]
    ]
    return sorted(left, key=lambda worker: worker["created_at"])


def pause_s(worker: dict) -> float:
    """From a worker's end to when its place may be filled again."""
    life_s = sum(worker["bill"][part] for part in ("start_s", "run_s", "idle_s"))
    return worker["retry_at"] - worker["created_at"] - life_s


def submit_all(platform: RunningEmulator, count: int) -> list[str]:
    return [submit(platform, {"input": JOB | {"seed": seed}}) for seed in range(count)]


def has_left(platform: RunningEmulator, said: str, times: int = 1) -> bool:
    return sum(said in worker["reason"] for worker in left_workers(platform)) >= times


LATE = "has no header of a safetensors file"
EARLY = "not what was baked: this copy is damaged"


@dataclass(frozen=True, kw_only=True)
class Run:
    """50 jobs, the first half of them while damage shows late."""

    statuses: list[str]
    first: list[dict]
    second: list[dict]
    left: list[dict]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A healthy worker, and the workers of a bad host. At first they find the damage late: no
    checksum tells, and loading takes its time. Then the copy is one with checksums.
    """
    folder = tmp_path_factory.mktemp("hosts")
    bad = folder / "bad"
    bad.symlink_to(broken_copy("unlisted header", folder / "late"))
    broken_copy("flipped byte", folder / "early")
    places = {"BAD_HOST": folder / "lock", "BAD_WEIGHTS": bad}
    good = copy_weights(folder / "good")
    settings = two_workers(ONE_BAD_HOST, folder / "state", PIXPOD_WEIGHTS_DIR=good, **places)
    with running_emulator(settings) as platform:
        first = submit_all(platform, 25)
        platform.wait_until(lambda state: has_left(platform, LATE), LIMIT_S)
        bad.unlink()
        bad.symlink_to(folder / "early")
        platform.wait_until(lambda state: has_left(platform, EARLY), LIMIT_S)
        second = submit_all(platform, 25)
        ended = [wait_for(platform, job_id, LIMIT_S) for job_id in first + second]
        platform.wait_until(lambda state: has_left(platform, EARLY, times=2), LIMIT_S)
        return Run(
            statuses=[status["status"] for status in ended],
            first=[platform.job(job_id) for job_id in first],
            second=[platform.job(job_id) for job_id in second],
            left=left_workers(platform),
        )


def test_no_job_fails(run):
    assert run.statuses == ["COMPLETED"] * 50


def test_damage_that_shows_late_gives_the_job_back(run):
    assert LATE in run.left[0]["reason"]
    lost = [job for job in run.first if job["retries"]]
    assert lost, "the damage was to show with a job taken"
    assert {job["executions"] for job in lost} == {2}
    assert {job["error"] for job in lost} == {None}


def test_damage_that_checksums_show_takes_no_job(run):
    assert {job["executions"] for job in run.second} == {1}
    left = [worker for worker in run.left if EARLY in worker["reason"]]
    assert {worker["num_results"] for worker in left} == {0}
    assert all(": exited with 1; " in worker["reason"] for worker in left)
    assert {worker["bill"]["run_s"] for worker in left} == {0}


def test_all_jobs_end_on_the_healthy_worker(run):
    (healthy,) = {job["worker_id"] for job in [*run.first, *run.second]}
    assert healthy not in [worker["id"] for worker in run.left]


def test_bad_host_is_tried_again_ever_later(run):
    assert_pauses_grow(run.left)


def test_jobs_wait_while_every_host_is_bad(tmp_path):
    weights = broken_copy("short file", tmp_path / "weights")
    settings = two_workers(ROOT / "handler.py", tmp_path / "state", PIXPOD_WEIGHTS_DIR=weights)
    with running_emulator(settings) as platform:
        ids = submit_all(platform, 3)
        platform.wait_until(lambda state: len(left_workers(platform)) >= 3, LIMIT_S)
        jobs = [platform.job(job_id) for job_id in ids]
        left = left_workers(platform)
        for job_id in ids:
            call(platform, f"/cancel/{job_id}", {})
    assert {job["status"] for job in jobs} == {"IN_QUEUE"}
    assert {job["executions"] for job in jobs} == {0}
    assert_pauses_grow(left)


def assert_pauses_grow(left: list[dict]) -> None:
    """Each worker that fails in a row has its place kept empty for longer: 1 s, 2 s, 4 s."""
    by_end = sorted(left, key=lambda worker: worker["retry_at"])
    pauses = [pause_s(worker) for worker in by_end]
    assert len(pauses) >= 3
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(pauses))
