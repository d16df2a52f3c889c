"""Refresh, deadline, cancellation, progress and bill of a worker that runs several jobs.

The real SDK on the emulated platform; the worker is the product's, its engine a clock.
"""

import time
from dataclasses import replace

import pytest
from support.platform import call, submit

from pixpod.testing.scripted_engine import ScriptedTimes
from pixpod.testing.scripted_worker import HANDLER, ScriptedWorker
from runpod_emulator.behaviour import LateProgress
from runpod_emulator.testing import QUICK, running_emulator, settings_for

LIMIT_S = 120
POLL_S = 0.05
USD_PER_SECOND = 0.001

QUICK_TIMES = ScriptedTimes(batch_s=0.05, image_s=0.1, max_batch_size=4)
SLOW_TIMES = ScriptedTimes(batch_s=6.0, image_s=0.0, max_batch_size=1)
NUM_WATCHED = 20
NUM_REFRESHED = 16

ENDPOINTS = {
    "refreshed": ScriptedWorker(
        times=ScriptedTimes(batch_s=0.3, image_s=0.0, max_batch_size=1),
        max_concurrency=3,
        refresh_after_images=4,
    ),
    "progress": ScriptedWorker(
        times=ScriptedTimes(batch_s=3.5, image_s=0.0, max_batch_size=NUM_WATCHED),
        max_concurrency=NUM_WATCHED,
    ),
    "slow": ScriptedWorker(times=SLOW_TIMES, max_concurrency=2),
    "limited": ScriptedWorker(times=SLOW_TIMES, max_concurrency=2, max_job_s=1.0),
    "billed": ScriptedWorker(
        times=QUICK_TIMES, max_concurrency=5, usd_per_gpu_second=USD_PER_SECOND
    ),
}


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    """All endpoints at once, since a worker's start takes seconds; one worker each.

    The platform is strict: a worker that requests a refresh is killed with all its jobs.
    """
    directory = tmp_path_factory.mktemp("limits")
    behaviour = replace(QUICK, late_progress=LateProgress.REOPEN, terminate_grace_s=0.0)
    each = [
        settings_for(
            HANDLER,
            directory,
            behaviour=behaviour,
            endpoint_id=name,
            rate_limits=False,
            workers_min=1,
            workers_max=1,
            env=spec.environ(),
        )
        for name, spec in ENDPOINTS.items()
    ]
    endpoints = tuple(settings.endpoints[0] for settings in each)
    with running_emulator(replace(each[0], endpoints=endpoints)) as running:
        yield running


@pytest.fixture(scope="module")
def jobs(platform):
    """Ids of the jobs of the endpoints that need no more than to be left alone."""
    numbers = {"refreshed": NUM_REFRESHED, "billed": 20, "limited": 2}
    return {name: [ask(platform, name) for _ in range(count)] for name, count in numbers.items()}


def ask(platform, endpoint_id, steps=4):
    given = {"model": "sdxl-tiny", "prompt": "a red circle", "num_inference_steps": steps}
    return submit(platform, {"input": given}, endpoint_id=endpoint_id)


def status_of(platform, endpoint_id, job_id):
    return call(platform, f"/status/{job_id}", endpoint_id=endpoint_id)


def end_of(platform, endpoint_id, job_id):
    return until(
        lambda: status_of(platform, endpoint_id, job_id),
        lambda status: status["status"] not in ("IN_QUEUE", "IN_PROGRESS"),
    )


def until(look, holds):
    deadline = time.monotonic() + LIMIT_S
    while not holds(found := look()):
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(POLL_S)
    return found


class TestProgress:
    @pytest.fixture(scope="class")
    @classmethod
    def seen(cls, platform):
        """What a client that polls sees of each job until it has ended."""
        waiting = {ask(platform, "progress", steps=20) for _ in range(NUM_WATCHED)}
        seen: dict[str, list] = {job_id: [] for job_id in waiting}
        deadline = time.monotonic() + LIMIT_S
        while waiting:
            assert time.monotonic() < deadline, f"{len(waiting)} jobs have not ended"
            for job_id in tuple(waiting):
                status = status_of(platform, "progress", job_id)
                if status not in seen[job_id]:
                    seen[job_id].append(status)
                if status["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
                    waiting.discard(job_id)
            time.sleep(POLL_S)
        return seen.values()

    def test_client_sees_its_job_get_on(self, seen):
        for statuses in seen:
            updates = [
                s["output"] for s in statuses if s["status"] == "IN_PROGRESS" and "output" in s
            ]
            steps = [update["step"] for update in updates if update["phase"] == "denoising"]
            assert steps == sorted(set(steps))
            assert steps[-1] < 19, "none in the last step"
            assert all(update["percent"] == update["step"] * 5 for update in updates)

    def test_no_result_is_lost_to_a_late_update(self, seen, platform):
        for statuses in seen:
            assert statuses[-1]["status"] == "COMPLETED"
            assert len(statuses[-1]["output"]["images"]) == 1
        assert "late-progress" not in platform.state()["hazards"]["counts"]


class TestRefresh:
    def test_refreshed_workers_lose_no_job(self, platform, jobs):
        ended = [end_of(platform, "refreshed", job_id) for job_id in jobs["refreshed"]]
        assert [status["status"] for status in ended] == ["COMPLETED"] * NUM_REFRESHED
        assert all(platform.job(job_id)["executions"] == 1 for job_id in jobs["refreshed"])
        assert len({status["workerId"] for status in ended}) >= 2

    def test_worker_leaves_when_it_has_answered_all_its_jobs(self, platform, jobs):
        for job_id in jobs["refreshed"]:
            end_of(platform, "refreshed", job_id)
        state = until(platform.state, lambda s: s["endpoints"]["refreshed"]["retired"])
        assert all(
            worker["num_results"] >= 4 and worker["jobs"] == []
            for worker in state["endpoints"]["refreshed"]["retired"]
        )


class TestDeadline:
    def test_job_that_takes_too_long_says_how_far_it_got(self, platform, jobs):
        first, second = (end_of(platform, "limited", job_id) for job_id in jobs["limited"])
        assert first["status"] == second["status"] == "FAILED"
        assert first["error"].startswith("deadline_exceeded: ")
        assert first["workerId"] == second["workerId"], "it lives on"


class TestCancellation:
    def test_cancelled_job_ends_at_its_next_step_and_the_other_goes_on(self, platform):
        cancelled, other = ask(platform, "slow", steps=50), ask(platform, "slow", steps=4)
        has_both = lambda state: len(state["endpoints"]["slow"]["workers"][0]["jobs"]) == 2  # noqa: E731
        until(platform.state, has_both)
        call(platform, f"/cancel/{cancelled}", method="POST", endpoint_id="slow")
        status = end_of(platform, "slow", other)
        assert status["status"] == "COMPLETED"
        assert status["output"]["timings_ms"]["queue"] < 6000, "it waited for the cancelled job"
        assert status_of(platform, "slow", cancelled)["status"] == "CANCELLED"
        assert platform.job(other)["executions"] == 1
        assert platform.job(other)["worker_id"] == platform.job(cancelled)["worker_id"]


class TestBill:
    def test_shares_of_the_jobs_never_exceed_the_bill(self, platform, jobs):
        ended = [end_of(platform, "billed", job_id) for job_id in jobs["billed"]]
        costs = [status["output"]["cost"] for status in ended]
        endpoint = platform.state()["endpoints"]["billed"]
        bills = [w["bill"] for w in (*endpoint["workers"], *endpoint["retired"])]
        shares_s = sum(cost["gpu_ms"] for cost in costs) / 1e3
        reported_usd = sum(cost["estimated_usd"] for cost in costs)
        assert reported_usd == pytest.approx(shares_s * USD_PER_SECOND, abs=1e-6)
        assert 0 < shares_s < sum(bill["run_s"] for bill in bills), "jobs were paid for twice"
        assert sum(bill["run_s"] for bill in bills) < sum(bill["billed_s"] for bill in bills)

    def test_jobs_of_a_batch_share_its_time(self, platform, jobs):
        ended = [end_of(platform, "billed", job_id) for job_id in jobs["billed"]]
        spent = [
            (status["output"]["cost"]["gpu_ms"], status["output"]["timings_ms"]["denoise"])
            for status in ended
        ]
        assert any(gpu_ms < denoise_ms / 2 for gpu_ms, denoise_ms in spent)
        assert all(gpu_ms <= denoise_ms + 0.1 for gpu_ms, denoise_ms in spent)
