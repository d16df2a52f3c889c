"""Workers that die and results that are refused: every job ends as promised, at a small scale."""

import asyncio
from dataclasses import replace

import pytest

from pixpod_bench.emulator.__main__ import main
from pixpod_bench.emulator.chaos import run_chaos
from pixpod_bench.emulator.verdict import ChaosSettings, is_explained
from runpod_emulator.jobs.job import JobStatus

MANY_RETRIES = ChaosSettings(
    num_jobs=60, num_workers=2, concurrency=8, kill_every=15, refusal_rate=0.1
)
PLATFORMS_RETRIES = ChaosSettings(num_jobs=10, num_workers=2, kill_every=1, max_retries=1)


def chaos(settings, state_dir):
    seen: list[int] = []
    result = asyncio.run(run_chaos(replace(settings, limit_s=120), state_dir, seen.append))
    assert seen[-1] == settings.num_jobs
    return result


@pytest.fixture(scope="module")
def with_many_retries(tmp_path_factory):
    return chaos(MANY_RETRIES, tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def with_the_platforms_retries(tmp_path_factory):
    return chaos(PLATFORMS_RETRIES, tmp_path_factory.mktemp("one"))


def test_with_many_retries_every_job_completes(with_many_retries):
    assert with_many_retries.broken_promises() == []
    assert with_many_retries.num_completed == MANY_RETRIES.num_jobs


def test_each_webhook_is_delivered(with_many_retries):
    assert with_many_retries.num_delivered == MANY_RETRIES.num_jobs
    assert with_many_retries.deliveries.keys() == {job.id for job in with_many_retries.jobs}


def test_killed_workers_cost_executions(with_many_retries):
    assert len(with_many_retries.killed) == MANY_RETRIES.num_jobs // MANY_RETRIES.kill_every - 1
    assert with_many_retries.num_executions > MANY_RETRIES.num_jobs
    assert with_many_retries.num_refused_posts > 0


def test_with_the_platforms_retries_each_failure_is_explained(with_the_platforms_retries):
    assert with_the_platforms_retries.failed
    assert with_the_platforms_retries.broken_promises() == []


def test_a_failure_without_its_cause_is_noticed(with_the_platforms_retries):
    unknown = replace(with_the_platforms_retries, killed=())
    assert len(unknown.broken_promises()) >= len(unknown.failed)


def test_a_job_whose_poll_was_gone_is_explained(with_many_retries):
    job = next(job for job in with_many_retries.jobs if job.executions == 1)
    submitted, *rest = job.history
    taken, gone = rest[0], replace(submitted, reason="poll was gone")
    again = replace(job, executions=2, history=(submitted, taken, gone, *rest))
    assert is_explained(again, 5, killed=[])
    assert not is_explained(replace(again, executions=3), 5, killed=[])


def test_a_missing_webhook_is_noticed(with_the_platforms_retries):
    job = with_the_platforms_retries.jobs[0]
    deliveries = {**with_the_platforms_retries.deliveries, job.id: 0}
    silent = replace(with_the_platforms_retries, deliveries=deliveries)
    assert silent.broken_promises() == [f"{job.id}: its webhook was not delivered"]


def test_a_failure_is_no_option_with_many_retries(with_the_platforms_retries):
    settings = replace(PLATFORMS_RETRIES, max_retries=5)
    lenient = replace(with_the_platforms_retries, settings=settings)
    assert any("FAILED with 5 retries" in broken for broken in lenient.broken_promises())


def test_a_job_that_is_left_over_is_noticed(with_many_retries):
    first, *others = with_many_retries.jobs
    left = replace(with_many_retries, jobs=[replace(first, status=JobStatus.IN_PROGRESS), *others])
    assert left.broken_promises() == [f"{first.id}: still IN_PROGRESS"]


def test_a_job_that_is_gone_is_noticed(with_many_retries):
    fewer = replace(with_many_retries, jobs=with_many_retries.jobs[1:])
    assert fewer.broken_promises() == ["1 jobs are gone"]


def test_the_command_explains_its_flags(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["chaos", "--help"])
    assert ending.value.code == 0
    assert "--kill-every" in capsys.readouterr().out
