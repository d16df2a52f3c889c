"""Values: a job, its policy, its webhook, and its history.

A job's input and output are not here: they can be large and stay in the store as JSON text.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class JobStatus(StrEnum):
    """The states that the platform's API returns; there is no RUNNING."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def is_final(self) -> bool:
        return self not in (JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS)

    @property
    def can_be_retried(self) -> bool:
        return self in (JobStatus.FAILED, JobStatus.TIMED_OUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`policy` of a request, with the endpoint's defaults filled in.

    `ttl_s` counts from submission, `execution_timeout_s` from each take. A job of low priority
    does not make the endpoint scale.
    """

    execution_timeout_s: float
    ttl_s: float
    is_low_priority: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """The address to which a job's end is posted, and the state of that delivery.

    `next_at` is the time of the next attempt; None before the job ends and once it is settled.
    """

    url: str
    attempts: int = 0
    next_at: float | None = None
    delivered_at: float | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of a job's history: its new status, the reason, and the worker."""

    at: float
    status: JobStatus
    reason: str
    worker_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as the platform keeps it. Times are seconds since the epoch.

    `revision` belongs to the store, which counts it up with every change (compare and swap).
    `retries` are requeues after a lost worker; `executions` counts every take, since delivery is
    at least once. `s3_config` is the caller's `s3Config` as JSON text; it is deleted when the job
    ends, and `is_s3_config_deleted` remembers that. `is_hidden` marks a job that is over for its
    caller and kept only until its webhook is settled.
    """

    id: str
    endpoint_id: str
    is_sync: bool
    policy: Policy
    created_at: float
    status: JobStatus = JobStatus.IN_QUEUE
    queued_at: float
    started_at: float | None = None
    finished_at: float | None = None
    worker_id: str | None = None
    retries: int = 0
    executions: int = 0
    error: str | None = None
    webhook: Webhook | None = None
    s3_config: str | None = field(default=None, repr=False)
    is_s3_config_deleted: bool = False
    is_hidden: bool = False
    history: tuple[Event, ...] = ()
    revision: int = 0

    @property
    def delay_ms(self) -> int:
        """Milliseconds from submission to the last execution, or to an end without one."""
        until = self.started_at or self.finished_at or self.queued_at
        return round((until - self.created_at) * 1000)

    @property
    def execution_ms(self) -> int | None:
        if self.started_at is None or self.finished_at is None:
            return None
        return round((self.finished_at - self.started_at) * 1000)
