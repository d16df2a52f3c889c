"""Assumptions about undocumented behaviour of the platform, each with a switch.

`docs/conformance` names the source of every default and the test that holds it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class ExpiredInQueue(StrEnum):
    """The fate of a job whose ttl ends before a worker takes it."""

    DELETED = "deleted"
    TIMED_OUT = "TIMED_OUT"


class Purged(StrEnum):
    """The fate of queued jobs on `/purge-queue`."""

    CANCELLED = "CANCELLED"
    DELETED = "deleted"


class EmptyInput(StrEnum):
    """The fate of a job with `input: {}`, which on the platform seems never to reach a handler."""

    WARN = "warn"
    LOST = "lost"


class LateProgress(StrEnum):
    """The effect of a progress update that overtakes the result; runpod-python #250 is `reopen`."""

    DROP = "drop"
    REOPEN = "reopen"


class Unlisted(StrEnum):
    """The fate of a job that its worker's pings no longer list although no result came."""

    LOST = "lost"
    HANG = "hang"


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """Inferred or uncertain behaviour of the platform. Times are seconds, sizes bytes."""

    poll_hold_s: float = 20.0
    """Longest time that job-take and job-stop are held; below 30 s for SDKs before 1.7.9."""
    stream_hold_s: float = 1.0
    """Time that `/stream` without `?wait=` waits for an item. JavaScript clients poll at once."""
    ping_interval_s: float = 10.0
    """Time between pings, at least 1: the SDK divides milliseconds as integers and breaks on 0."""
    heartbeat_timeout_s: float = 30.0
    """A worker without a ping, or a job missing from the pings, is lost after this time."""
    max_retries: int = 1
    """Requeues after a lost worker before the job fails."""
    unlisted_job: Unlisted = Unlisted.LOST
    stop_grace_s: float = 5.0
    """Time from job-stop to the kill of a worker that still lists the job."""
    kill_if_not_stopped: bool = True
    terminate_grace_s: float = 30.0
    """Time from SIGTERM to SIGKILL."""
    execution_timeout_status: Literal["FAILED", "TIMED_OUT"] = "FAILED"
    """Status after the execution timeout: documentation says TIMED_OUT, users report FAILED."""
    expired_in_queue: ExpiredInQueue = ExpiredInQueue.DELETED
    purged: Purged = Purged.CANCELLED
    empty_input: EmptyInput = EmptyInput.WARN
    late_progress: LateProgress = LateProgress.DROP
    webhook_on_cancel: bool = False
    webhook_retries: int = 2
    webhook_retry_interval_s: float = 10.0
    webhook_timeout_s: float = 10.0
    async_retention_s: float = 1800.0
    sync_retention_s: float = 60.0
    min_execution_timeout_s: float = 5.0
    min_ttl_s: float = 10.0
    max_policy_s: float = 7 * 86400.0
    enforce_max_policy: bool = False
    max_run_bytes: int = 10_000_000
    max_runsync_bytes: int = 20_000_000
    max_result_bytes: int = 20_000_000
    max_chunk_bytes: int = 1_000_000
    oversize_status: int = 400
    late_result_status: int = 200
    queue_limit: bool = True
    """429 when more than 50 jobs and more than 500 for each maximum worker are queued."""
    ready_counts_running: bool = False
    """If true, `ready` in `/health` counts running workers besides idle ones."""
    workers_per_step: int = 1
    """Number of workers that QUEUE_DELAY adds at once."""
    retry_backoff_max_s: float = 60.0
    """Longest pause between starts of a worker that keeps crashing."""
    refusal_delay_s: float = 1.0
    """Delay before a 401 or 503 to a worker, since the SDK repeats the call at once."""
