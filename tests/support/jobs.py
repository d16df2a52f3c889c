"""Jobs of the emulator for tests to change: `make_job(id="b")`, `make_job_in(JobStatus.FAILED)`.

A job that is made here was submitted at `CREATED_AT`; `make_job_in` has it taken by `WORKER` after
`WAITED_S` and ended after `RAN_S` more.
"""

from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.jobs import lifecycle
from runpod_emulator.jobs.job import Job, JobStatus, Policy, Webhook

T = TypeVar("T")

CREATED_AT = 1000.0
WAITED_S = 10.0
RAN_S = 5.0
STARTED_AT = CREATED_AT + WAITED_S
ENDED_AT = STARTED_AT + RAN_S
WORKER = "worker-1"
OTHER_WORKER = "worker-2"
BEHAVIOUR = Behaviour()


def make_policy(**changes):
    return replace(Policy(execution_timeout_s=600.0, ttl_s=86400.0), **changes)


def make_webhook(**changes):
    return replace(Webhook(url="http://127.0.0.1:9/hook"), **changes)


def make_job(**changes):
    """A job that has just been submitted; `queued_at` follows `created_at`."""
    created_at = changes.get("created_at", CREATED_AT)
    fields = {
        "id": "job-1",
        "endpoint_id": "ep",
        "is_sync": False,
        "policy": make_policy(),
        "created_at": created_at,
        "queued_at": created_at,
    }
    return lifecycle.submit(Job(**fields | changes))


_ENDS = {
    JobStatus.COMPLETED: lambda job: lifecycle.complete(job, WORKER, ENDED_AT, BEHAVIOUR),
    JobStatus.FAILED: lambda job: lifecycle.fail(job, WORKER, ENDED_AT, "broken", BEHAVIOUR),
    JobStatus.CANCELLED: lambda job: lifecycle.cancel(job, ENDED_AT, BEHAVIOUR),
    JobStatus.TIMED_OUT: lambda job: lifecycle.time_out(
        job, ENDED_AT, replace(BEHAVIOUR, execution_timeout_status="TIMED_OUT")
    ),
}


def make_job_in(status, **changes):
    """A job that came to this status as jobs do; an ended one was taken before."""
    job = make_job(**changes)
    if status is JobStatus.IN_QUEUE:
        return job
    taken = lifecycle.take(job, WORKER, STARTED_AT)
    return taken if status is JobStatus.IN_PROGRESS else _ENDS[status](taken)


def answer(coroutine: Coroutine[Any, Any, T]) -> T:
    """What it returns; a store that answers on the spot awaits nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        returned: T = end.value
        return returned
    raise AssertionError(f"{coroutine} awaits something")
