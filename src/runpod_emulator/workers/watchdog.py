"""Decides what to do about a worker, from its facts and the time.

Policy only: it sees facts and a time, and acts on nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from runpod_emulator.behaviour import Behaviour, Unlisted
from runpod_emulator.hazards import HazardKind
from runpod_emulator.settings import EndpointSettings
from runpod_emulator.workers.session import AssignedJob, WorkerSession
from runpod_emulator.workers.state import WorkerState


@dataclass(frozen=True, slots=True)
class Kill:
    """End the worker by force; `hazard` is the diagnostic for its owner, about `job_id` if any.

    With `is_blamed`, it counts as a crash.
    """

    reason: str
    hazard: HazardKind | None = None
    job_id: str | None = None
    is_blamed: bool = True


@dataclass(frozen=True, slots=True)
class LoseJob:
    """Requeue or give up a job that is lost while its worker lives."""

    job_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ForgetJob:
    """Forget a job that was stopped and that the worker no longer has."""

    job_id: str


Verdict = Kill | LoseJob | ForgetJob


def verdicts(
    worker: WorkerSession, endpoint: EndpointSettings, behaviour: Behaviour, now: float
) -> Iterator[Verdict]:
    """Yield the actions due for this worker; a kill comes alone."""
    kill = _must_kill(worker, endpoint, behaviour, now)
    if kill is not None:
        yield kill
        return
    for job_id, assigned in worker.jobs.items():
        if assigned.unlisted_since is None:
            continue
        unlisted_s = now - assigned.unlisted_since
        if assigned.stop_requested_at is not None:
            if _has_stopped(worker, assigned):
                yield ForgetJob(job_id)
        elif (
            unlisted_s >= behaviour.heartbeat_timeout_s and behaviour.unlisted_job is Unlisted.LOST
        ):
            yield LoseJob(job_id, f"not in the worker's pings for {unlisted_s:.0f} s")


def _must_kill(
    worker: WorkerSession, endpoint: EndpointSettings, behaviour: Behaviour, now: float
) -> Kill | None:
    if worker.process is None or worker.started_at is None or worker.is_killed:
        return None
    if worker.kill_at is not None:
        is_over = now >= worker.kill_at
        reason = "did not end in time after SIGTERM"
        return Kill(reason, is_blamed=False) if is_over else None
    if worker.state is WorkerState.INITIALIZING:
        limit_s = endpoint.start_limit_s
        is_over = now - worker.started_at >= limit_s
        reason = f"not ready after {limit_s:.0f} s"
        return Kill(reason, hazard=HazardKind.SLOW_START) if is_over else None
    # its pings start with its polls, by another process: the first poll may be earlier
    silent_s = now - (worker.last_ping_at or worker.ready_at or worker.started_at)
    if silent_s >= behaviour.heartbeat_timeout_s:
        return Kill(f"no ping for {silent_s:.0f} s")
    if behaviour.kill_if_not_stopped:
        for job_id, assigned in worker.jobs.items():
            if _ignores_stop(worker, assigned, behaviour):
                return Kill(
                    f"job {job_id} did not react to job-stop",
                    hazard=HazardKind.BLOCKED_HANDLER,
                    job_id=job_id,
                    is_blamed=False,
                )
    return None


def _has_stopped(worker: WorkerSession, assigned: AssignedJob) -> bool:
    """Return whether the stop is confirmed by more than one ping that may precede the take."""
    if assigned.stop_requested_at is None or assigned.unlisted_since is None:
        return False
    news_after = min(assigned.stop_requested_at, assigned.unlisted_since)
    return assigned.is_dropped or (worker.last_ping_at or 0) > news_after


def _ignores_stop(worker: WorkerSession, assigned: AssignedJob, behaviour: Behaviour) -> bool:
    """Return whether a ping after the grace period still lists a job that was to be stopped."""
    if assigned.stop_requested_at is None or assigned.unlisted_since is not None:
        return False
    return (worker.last_ping_at or 0) > assigned.stop_requested_at + behaviour.stop_grace_s
