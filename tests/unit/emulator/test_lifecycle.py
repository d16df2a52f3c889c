"""Every transition, and every event that must change nothing."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.jobs import (
    BEHAVIOUR,
    CREATED_AT,
    ENDED_AT,
    OTHER_WORKER,
    RAN_S,
    STARTED_AT,
    WAITED_S,
    WORKER,
    make_job,
    make_job_in,
    make_policy,
    make_webhook,
)

from runpod_emulator.behaviour import Behaviour, ExpiredInQueue
from runpod_emulator.jobs import lifecycle
from runpod_emulator.jobs.job import Event, JobStatus
from runpod_emulator.jobs.lifecycle import Due

NOW = 1100.0

QUEUED = JobStatus.IN_QUEUE
RUNNING = JobStatus.IN_PROGRESS
COMPLETED = JobStatus.COMPLETED
FAILED = JobStatus.FAILED
CANCELLED = JobStatus.CANCELLED
TIMED_OUT = JobStatus.TIMED_OUT

TRANSITIONS = {
    "take": lambda job, worker_id, now, behaviour: lifecycle.take(job, worker_id, now),
    "give_back": lambda job, worker_id, now, behaviour: lifecycle.give_back(
        job, worker_id, now, "crash at start"
    ),
    "lose": lambda job, worker_id, now, behaviour: lifecycle.lose(
        job, worker_id, now, "no ping", behaviour
    ),
    "complete": lifecycle.complete,
    "fail": lambda job, worker_id, now, behaviour: lifecycle.fail(
        job, worker_id, now, "out of memory", behaviour
    ),
    "cancel": lambda job, worker_id, now, behaviour: lifecycle.cancel(job, now, behaviour),
    "retry": lambda job, worker_id, now, behaviour: lifecycle.retry(job, now),
    "time_out": lambda job, worker_id, now, behaviour: lifecycle.time_out(job, now, behaviour),
    "reopen": lambda job, worker_id, now, behaviour: lifecycle.reopen(job, worker_id, now),
}
EVENTS = TRANSITIONS | {
    "expire": lambda job, worker_id, now, behaviour: lifecycle.expire(job, now, behaviour),
    "delivered": lambda job, worker_id, now, behaviour: lifecycle.webhook_delivered(job, now),
    "undelivered": lambda job, worker_id, now, behaviour: lifecycle.webhook_failed(
        job, now, "500", behaviour
    ),
}
LEADS_TO = {
    "take": {QUEUED: RUNNING},
    "give_back": {RUNNING: QUEUED},
    "lose": {RUNNING: QUEUED},
    "complete": {RUNNING: COMPLETED},
    "fail": {RUNNING: FAILED},
    "cancel": {QUEUED: CANCELLED, RUNNING: CANCELLED},
    "retry": {FAILED: QUEUED, TIMED_OUT: QUEUED},
    "time_out": {RUNNING: FAILED},
    "reopen": {COMPLETED: RUNNING},
}
UNCHECKED = ("time_out", "reopen")
"""Do not look at `is_hidden`: what is due never names a hidden job, and a bug is a bug."""
OF_A_WORKER = ("give_back", "lose", "complete", "fail", "reopen")


def happen(event, job, worker_id=WORKER, now=NOW, behaviour=BEHAVIOUR):
    return EVENTS[event](job, worker_id, now, behaviour)


@pytest.mark.parametrize("before", JobStatus)
@pytest.mark.parametrize("event", TRANSITIONS)
def test_event_leads_where_the_table_says_or_changes_nothing(event, before):
    job = make_job_in(before)
    after = happen(event, job)
    expected = LEADS_TO[event].get(before)
    assert (after and after.status) == expected
    if after is not None:
        assert after.history[:-1] == job.history
        assert (after.history[-1].status, after.history[-1].at) == (expected, NOW)
        assert (after.id, after.revision) == (job.id, job.revision)


@pytest.mark.parametrize("event", OF_A_WORKER)
@pytest.mark.parametrize("before", JobStatus)
def test_another_workers_word_changes_nothing(event, before):
    assert happen(event, make_job_in(before), worker_id=OTHER_WORKER) is None


@pytest.mark.parametrize("event", [name for name in TRANSITIONS if name not in UNCHECKED])
@pytest.mark.parametrize("before", JobStatus)
def test_hidden_job_is_over_for_everybody(event, before):
    assert happen(event, replace(make_job_in(before), is_hidden=True)) is None


def test_every_status_has_its_legal_successors():
    assert lifecycle.LEGAL.keys() == set(JobStatus)
    assert all(
        after in lifecycle.LEGAL[before]
        for event, moves in LEADS_TO.items()
        for before, after in moves.items()
        if event != "reopen"
    )


def test_progress_that_reopens_is_no_legal_transition_but_an_emulated_bug():
    reopened = happen("reopen", make_job_in(COMPLETED))
    assert reopened.finished_at is None
    assert RUNNING not in lifecycle.LEGAL[COMPLETED]


def test_submitted_job_has_one_line_of_history():
    assert make_job().history == (Event(at=CREATED_AT, status=QUEUED, reason="submitted"),)


def test_taken_job_belongs_to_its_worker():
    job = make_job_in(RUNNING)
    assert (job.worker_id, job.started_at, job.executions) == (WORKER, STARTED_AT, 1)
    assert job.history[-1].worker_id == WORKER
    assert lifecycle.is_assigned(job, WORKER)
    assert not lifecycle.is_assigned(job, OTHER_WORKER)
    assert not lifecycle.is_assigned(replace(job, is_hidden=True), WORKER)


def test_times_are_those_of_the_execution_that_counts():
    requeued = happen("lose", make_job_in(RUNNING))
    assert (requeued.delay_ms, requeued.execution_ms) == ((NOW - CREATED_AT) * 1000, None)
    again = happen("take", requeued, OTHER_WORKER, NOW + 1)
    done = happen("complete", again, OTHER_WORKER, NOW + 3)
    assert (done.delay_ms, done.execution_ms) == ((NOW + 1 - CREATED_AT) * 1000, 2000)
    once = make_job_in(COMPLETED)
    assert (once.delay_ms, once.execution_ms) == (WAITED_S * 1000, RAN_S * 1000)


def test_job_cancelled_in_the_queue_was_never_executed():
    cancelled = happen("cancel", make_job())
    assert (cancelled.finished_at, cancelled.execution_ms) == (NOW, None)


@pytest.mark.parametrize(("event", "retries"), [("give_back", 0), ("lose", 1)])
def test_requeued_job_has_no_worker_and_counts_a_retry_only_if_lost(event, retries):
    job = happen(event, make_job_in(RUNNING))
    assert (job.worker_id, job.started_at, job.queued_at) == (None, None, NOW)
    assert (job.retries, job.executions) == (retries, 1)
    assert job.history[-1].worker_id == WORKER


@pytest.mark.parametrize("max_retries", range(3))
def test_lost_job_fails_once_its_retries_are_spent(max_retries):
    behaviour = Behaviour(max_retries=max_retries)
    job = make_job()
    for _ in range(max_retries):
        job = happen("lose", happen("take", job), behaviour=behaviour)
        assert job.status is QUEUED
    job = happen("lose", happen("take", job), behaviour=behaviour)
    assert (job.status, job.retries) == (FAILED, max_retries)
    assert job.error == f"job timed out after {max_retries} retries"


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ("complete", None),
        ("fail", "out of memory"),
        ("cancel", None),
        ("time_out", "executionTimeout exceeded"),
    ],
)
def test_ended_job_says_when_and_why(event, error):
    job = happen(event, make_job_in(RUNNING))
    assert (job.finished_at, job.error, job.worker_id) == (NOW, error, WORKER)


@pytest.mark.parametrize("event", ["complete", "fail", "cancel", "time_out", "lose"])
def test_s3_config_is_deleted_when_the_job_ends(event):
    job = happen(event, make_job_in(RUNNING, s3_config='{"accessSecret":"x"}', retries=9))
    assert (job.s3_config, job.is_s3_config_deleted) == (None, True)


def test_requeued_job_keeps_its_s3_config():
    job = happen("give_back", make_job_in(RUNNING, s3_config='{"accessSecret":"x"}'))
    assert (job.s3_config, job.is_s3_config_deleted) == ('{"accessSecret":"x"}', False)


def test_status_after_an_execution_timeout_is_a_switch():
    behaviour = Behaviour(execution_timeout_status="TIMED_OUT")
    assert happen("time_out", make_job_in(RUNNING), behaviour=behaviour).status is TIMED_OUT


@pytest.mark.parametrize("status", [FAILED, TIMED_OUT])
def test_retried_job_is_as_new_but_keeps_its_age_and_history(status):
    webhook = make_webhook(attempts=3, next_at=NOW, delivered_at=NOW, failure="500")
    job = replace(make_job_in(status, retries=1), webhook=webhook)
    again = happen("retry", job)
    assert again.webhook == make_webhook()
    assert (again.retries, again.error, again.finished_at, again.worker_id) == (0, None, None, None)
    assert (again.created_at, again.queued_at, again.executions) == (CREATED_AT, NOW, 1)


@pytest.mark.parametrize(
    ("event", "next_at"),
    [("complete", NOW), ("fail", NOW), ("time_out", NOW), ("cancel", None), ("lose", None)],
)
def test_webhook_is_planned_when_the_job_ends_but_not_when_it_is_cancelled(event, next_at):
    job = happen(event, make_job_in(RUNNING, webhook=make_webhook()))
    assert job.webhook == make_webhook(next_at=next_at)


def test_webhook_after_a_cancel_is_a_switch():
    job = make_job(webhook=make_webhook())
    cancelled = happen("cancel", job, behaviour=Behaviour(webhook_on_cancel=True))
    assert cancelled.webhook.next_at == NOW


def test_delivered_webhook_is_settled():
    job = make_job_in(COMPLETED, webhook=make_webhook())
    assert happen("delivered", job).webhook == make_webhook(attempts=1, delivered_at=NOW)


@pytest.mark.parametrize("webhook_retries", range(3))
def test_webhook_is_given_up_after_its_retries(webhook_retries):
    behaviour = Behaviour(webhook_retries=webhook_retries, webhook_retry_interval_s=7)
    job = make_job_in(COMPLETED, webhook=make_webhook())
    for attempt in range(1, webhook_retries + 1):
        job = happen("undelivered", job, behaviour=behaviour)
        assert (job.webhook.attempts, job.webhook.next_at) == (attempt, NOW + 7)
    job = happen("undelivered", job, behaviour=behaviour)
    assert job.webhook == make_webhook(attempts=webhook_retries + 1, failure="500")


@pytest.mark.parametrize("webhook", [None, make_webhook()], ids=["none", "not planned"])
def test_settled_or_missing_webhook_changes_nothing(webhook):
    job = make_job(webhook=webhook)
    assert happen("delivered", job) is None
    assert happen("undelivered", job) is None


TTL_S = BEHAVIOUR.async_retention_s / 2
DUE_CASES = [
    (make_job(), CREATED_AT + 86400, Due.EXPIRE),
    (make_job_in(RUNNING), STARTED_AT + 600, Due.TIME_OUT),
    (make_job_in(RUNNING, policy=make_policy(ttl_s=300.0)), CREATED_AT + 300, Due.EXPIRE),
    (make_job_in(COMPLETED), ENDED_AT + BEHAVIOUR.async_retention_s, Due.EXPIRE),
    (make_job_in(FAILED, is_sync=True), ENDED_AT + BEHAVIOUR.sync_retention_s, Due.EXPIRE),
    (make_job_in(CANCELLED, policy=make_policy(ttl_s=TTL_S)), CREATED_AT + TTL_S, Due.EXPIRE),
    (happen("cancel", make_job()), NOW + BEHAVIOUR.async_retention_s, Due.EXPIRE),
    (happen("lose", make_job_in(RUNNING)), CREATED_AT + 86400, Due.EXPIRE),
]


@pytest.mark.parametrize(("job", "at", "due"), DUE_CASES)
def test_time_changes_a_job_at_its_earliest_limit_and_not_before(job, at, due):
    assert lifecycle.due_at(job, BEHAVIOUR) == at
    assert lifecycle.what_is_due(job, at - 0.001, BEHAVIOUR) is None
    assert lifecycle.what_is_due(job, at, BEHAVIOUR) is due


def test_ttl_outranks_an_execution_timeout_that_was_noticed_late():
    job = make_job_in(RUNNING)
    assert lifecycle.what_is_due(job, CREATED_AT + 86400, BEHAVIOUR) is Due.EXPIRE


def test_time_leaves_a_hidden_job_alone():
    hidden = replace(make_job_in(COMPLETED), is_hidden=True)
    assert lifecycle.due_at(hidden, BEHAVIOUR) is None
    assert lifecycle.what_is_due(hidden, 1e12, BEHAVIOUR) is None


@pytest.mark.parametrize("status", JobStatus)
def test_expired_job_without_a_webhook_to_send_may_be_removed(status):
    settled = make_webhook(attempts=1, delivered_at=NOW)
    for webhook in (None, settled):
        assert happen("expire", replace(make_job_in(status), webhook=webhook)) is None


def test_expired_job_is_hidden_until_its_webhook_is_settled():
    job = make_job_in(COMPLETED, webhook=make_webhook())
    assert happen("expire", job) == replace(job, is_hidden=True)


def test_job_that_expires_in_the_queue_may_be_kept_as_timed_out():
    behaviour = Behaviour(expired_in_queue=ExpiredInQueue.TIMED_OUT)
    job = make_job(webhook=make_webhook(), policy=make_policy(ttl_s=100.0))
    expired = happen("expire", job, behaviour=behaviour)
    assert (expired.status, expired.finished_at, expired.webhook.next_at) == (TIMED_OUT, NOW, NOW)
    assert lifecycle.due_at(expired, behaviour) == NOW + behaviour.async_retention_s


@st.composite
def lives(draw):
    """A job and all that it became through random events, most of which come at a wrong time."""
    behaviour = Behaviour(
        max_retries=draw(st.integers(0, 2)),
        webhook_on_cancel=draw(st.booleans()),
        execution_timeout_status=draw(st.sampled_from(["FAILED", "TIMED_OUT"])),
        expired_in_queue=draw(st.sampled_from(ExpiredInQueue)),
    )
    # reopening is a bug of the platform, outside its own rules
    events = st.lists(st.sampled_from([name for name in EVENTS if name != "reopen"]), max_size=25)
    life = [make_job(webhook=draw(st.sampled_from([None, make_webhook()])))]
    for event in draw(events):
        worker_id = draw(st.sampled_from([WORKER, OTHER_WORKER]))
        now = CREATED_AT + len(life)
        after = happen(event, life[-1], worker_id, now, behaviour)
        life.append(life[-1] if after is None else after)
    return life, behaviour


@settings(deadline=None)
@given(lives())
def test_whatever_happens_every_transition_is_legal(lived):
    life, behaviour = lived
    for before, after in pairwise(life):
        assert after.status is before.status or after.status in lifecycle.LEGAL[before.status]
        assert after.history[: len(before.history)] == before.history
    for job in life:
        statuses = [event.status for event in job.history]
        assert statuses[-1] is job.status
        assert all(b in lifecycle.LEGAL[a] for a, b in pairwise(statuses))
        assert job.executions == statuses.count(RUNNING)
        assert job.retries <= behaviour.max_retries
        assert (job.finished_at is not None) == job.status.is_final
        assert job.status is not RUNNING or job.worker_id is not None
        assert job.status is not QUEUED or job.worker_id is None
        assert job.status.is_final or job.webhook is None or job.webhook.next_at is None
