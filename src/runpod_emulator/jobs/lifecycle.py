"""The life cycle of a job: every transition there is, as functions of a job and a time.

They know no store, no socket and no clock. A function that returns None says that its event came
too late, or does not fit the job's state, and changes nothing.
"""

from dataclasses import replace
from enum import Enum, auto

from runpod_emulator.behaviour import Behaviour, ExpiredInQueue
from runpod_emulator.jobs.job import Event, Job, JobStatus

LEGAL = {
    JobStatus.IN_QUEUE: {JobStatus.IN_PROGRESS, JobStatus.CANCELLED, JobStatus.TIMED_OUT},
    JobStatus.IN_PROGRESS: {
        JobStatus.IN_QUEUE,
        JobStatus.COMPLETED,
        JobStatus.FAILED,
        JobStatus.CANCELLED,
        JobStatus.TIMED_OUT,
    },
    JobStatus.FAILED: {JobStatus.IN_QUEUE},
    JobStatus.TIMED_OUT: {JobStatus.IN_QUEUE},
    JobStatus.COMPLETED: set[JobStatus](),
    JobStatus.CANCELLED: set[JobStatus](),
}

EXECUTION_TIMEOUT = "executionTimeout exceeded"


class Due(Enum):
    """A change that the passing of time requires."""

    TIME_OUT = auto()
    EXPIRE = auto()


def submit(job: Job) -> Job:
    """Return a new job with the first line of its history."""
    return replace(job, history=(_event(job, JobStatus.IN_QUEUE, job.created_at, "submitted"),))


def take(job: Job, worker_id: str, now: float) -> Job | None:
    if job.status is not JobStatus.IN_QUEUE or job.is_hidden:
        return None
    taken = replace(job, worker_id=worker_id, started_at=now, executions=job.executions + 1)
    return _move(taken, JobStatus.IN_PROGRESS, now, "taken")


def give_back(job: Job, worker_id: str, now: float, reason: str) -> Job | None:
    """Requeue without counting a retry, for faults of the platform and not of the worker."""
    if not is_assigned(job, worker_id):
        return None
    return _requeue(job, now, reason)


def lose(job: Job, worker_id: str, now: float, reason: str, behaviour: Behaviour) -> Job | None:
    """Requeue after a lost worker, or give the job up once its retries are spent."""
    if not is_assigned(job, worker_id):
        return None
    if job.retries < behaviour.max_retries:
        return _requeue(replace(job, retries=job.retries + 1), now, reason)
    error = f"job timed out after {job.retries} retries"
    return _finish(job, JobStatus.FAILED, now, f"given up: {reason}", error, behaviour)


def complete(job: Job, worker_id: str, now: float, behaviour: Behaviour) -> Job | None:
    if not is_assigned(job, worker_id):
        return None
    return _finish(job, JobStatus.COMPLETED, now, "result", None, behaviour)


def fail(job: Job, worker_id: str, now: float, error: str, behaviour: Behaviour) -> Job | None:
    if not is_assigned(job, worker_id):
        return None
    return _finish(job, JobStatus.FAILED, now, "handler's error", error, behaviour)


def cancel(job: Job, now: float, behaviour: Behaviour, reason: str = "cancelled") -> Job | None:
    if job.status.is_final or job.is_hidden:
        return None
    return _finish(job, JobStatus.CANCELLED, now, reason, None, behaviour)


def retry(job: Job, now: float) -> Job | None:
    """Requeue a job for the caller's `/retry`: as a new one, but with its id, age and history."""
    if not job.status.can_be_retried or job.is_hidden:
        return None
    webhook = job.webhook and replace(
        job.webhook, attempts=0, next_at=None, delivered_at=None, failure=None
    )
    again = replace(job, retries=0, error=None, finished_at=None, webhook=webhook)
    return _requeue(again, now, "retried by its caller")


def reopen(job: Job, worker_id: str, now: float) -> Job | None:
    """Reopen a job as in the platform's bug #250: late progress makes it IN_PROGRESS again."""
    if job.status is not JobStatus.COMPLETED or job.worker_id != worker_id or job.is_hidden:
        return None
    event = _event(job, JobStatus.IN_PROGRESS, now, "late progress reopened it")
    return replace(
        job,
        status=JobStatus.IN_PROGRESS,
        finished_at=None,
        history=(*job.history, event),
    )


def due_at(job: Job, behaviour: Behaviour) -> float | None:
    """Return the time that changes this job; None if it only waits for its webhook."""
    if job.is_hidden:
        return None
    expires_at = job.created_at + job.policy.ttl_s
    if job.status is JobStatus.IN_PROGRESS and job.started_at is not None:
        return min(expires_at, job.started_at + job.policy.execution_timeout_s)
    if job.finished_at is not None and job.status.is_final:
        kept_s = behaviour.sync_retention_s if job.is_sync else behaviour.async_retention_s
        return min(expires_at, job.finished_at + kept_s)
    return expires_at


def what_is_due(job: Job, now: float, behaviour: Behaviour) -> Due | None:
    at = due_at(job, behaviour)
    if at is None or now < at:
        return None
    is_running = job.status is JobStatus.IN_PROGRESS
    return Due.TIME_OUT if is_running and now < job.created_at + job.policy.ttl_s else Due.EXPIRE


def time_out(job: Job, now: float, behaviour: Behaviour) -> Job | None:
    """End a job whose execution took longer than its policy allows."""
    if job.status is not JobStatus.IN_PROGRESS:
        return None
    status = JobStatus(behaviour.execution_timeout_status)
    return _finish(job, status, now, "execution timeout", EXECUTION_TIMEOUT, behaviour)


def expire(job: Job, now: float, behaviour: Behaviour) -> Job | None:
    """Hide a job whose ttl or retention is over until its webhook is settled, if it has one.

    Return None when nothing is left to do for the job, so that the store may remove it.
    """
    is_kept = behaviour.expired_in_queue is ExpiredInQueue.TIMED_OUT
    if job.status is JobStatus.IN_QUEUE and is_kept:
        expired = _finish(job, JobStatus.TIMED_OUT, now, "ttl over in the queue", None, behaviour)
        # from now on its retention counts, not the ttl that has just ended
        ttl_s = now - job.created_at + behaviour.async_retention_s
        return replace(expired, policy=replace(job.policy, ttl_s=ttl_s))
    if job.webhook is not None and job.webhook.next_at is not None:
        return replace(job, is_hidden=True)
    return None


def is_assigned(job: Job, worker_id: str) -> bool:
    """Return whether a result from this worker counts."""
    return job.status is JobStatus.IN_PROGRESS and job.worker_id == worker_id and not job.is_hidden


def webhook_delivered(job: Job, now: float) -> Job | None:
    webhook = job.webhook
    if webhook is None or webhook.next_at is None:
        return None
    settled = replace(webhook, attempts=webhook.attempts + 1, next_at=None, delivered_at=now)
    return replace(job, webhook=settled)


def webhook_failed(job: Job, now: float, failure: str, behaviour: Behaviour) -> Job | None:
    """Plan the next attempt, or give up after the last one."""
    webhook = job.webhook
    if webhook is None or webhook.next_at is None:
        return None
    attempts = webhook.attempts + 1
    is_last = attempts > behaviour.webhook_retries
    next_at = None if is_last else now + behaviour.webhook_retry_interval_s
    failed = replace(webhook, attempts=attempts, next_at=next_at, failure=failure)
    return replace(job, webhook=failed)


def _requeue(job: Job, now: float, reason: str) -> Job:
    queued = _move(job, JobStatus.IN_QUEUE, now, reason)
    return replace(queued, worker_id=None, started_at=None, queued_at=now)


def _finish(
    job: Job, status: JobStatus, now: float, reason: str, error: str | None, behaviour: Behaviour
) -> Job:
    finished = replace(
        _move(job, status, now, reason),
        finished_at=now,
        error=error,
        s3_config=None,
        is_s3_config_deleted=job.is_s3_config_deleted or job.s3_config is not None,
    )
    is_reported = status is not JobStatus.CANCELLED or behaviour.webhook_on_cancel
    if finished.webhook is not None and is_reported:
        return replace(finished, webhook=replace(finished.webhook, next_at=now))
    return finished


def _move(job: Job, status: JobStatus, now: float, reason: str) -> Job:
    assert status in LEGAL[job.status], f"{job.status} -> {status}"
    return replace(job, status=status, history=(*job.history, _event(job, status, now, reason)))


def _event(job: Job, status: JobStatus, now: float, reason: str) -> Event:
    return Event(at=now, status=status, reason=reason, worker_id=job.worker_id)
