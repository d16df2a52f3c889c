"""The platform's knowledge of one worker: its polls, pings and jobs, as facts with times.

It holds no socket and no clock; what to do about the facts is in `watchdog`.
"""

import secrets
from collections.abc import Collection
from dataclasses import dataclass

from runpod_emulator.ids import new_worker_id
from runpod_emulator.wake import Wake
from runpod_emulator.workers.billing import Meter, cost_usd
from runpod_emulator.workers.process import WorkerProcess
from runpod_emulator.workers.state import WorkerState

SETTLE_S = 0.5
"""Time until a job has left the SDK's own queue, where no job-stop reaches it."""


@dataclass(slots=True, kw_only=True)
class AssignedJob:
    """A job that was handed to this worker.

    `unlisted_since` is the time since which the worker no longer lists it, `is_dropped` is true if
    the worker has reported so itself.
    """

    taken_at: float
    unlisted_since: float | None = None
    stop_requested_at: float | None = None
    is_dropped: bool = False


class WorkerSession:
    """One worker from its start to its end.

    `reason` says why it is UNHEALTHY, DRAINING or STOPPED. `retry_at` is the time from which a
    crashed worker's place may be filled again. `wake` wakes its open job-stop poll. `is_unfit`: a
    fitness check or a prestart hook (SDK 2.0) has failed. Its host is to blame, not a job.
    """

    def __init__(
        self, created_at: float, *, is_active: bool = False, usd_per_second: float | None = None
    ) -> None:
        self.id = new_worker_id()
        self.token = secrets.token_urlsafe(24)
        self.created_at = created_at
        self.is_active = is_active
        self.usd_per_second = usd_per_second
        self.state = WorkerState.THROTTLED
        self.reason: str | None = None
        self.process: WorkerProcess | None = None
        self.meter = Meter(None)
        self.started_at: float | None = None
        self.ready_at: float | None = None
        self.idle_since: float | None = None
        self.last_ping_at: float | None = None
        self.kill_at: float | None = None
        self.retry_at: float | None = None
        self.jobs: dict[str, AssignedJob] = {}
        self.stops: list[str] = []
        self.num_taken = 0
        self.num_results = 0
        self.is_unfit = False
        self.is_end_requested = False
        self.is_killed = False
        self.wake = Wake()

    def started(self, process: WorkerProcess, now: float) -> None:
        """Note that the worker's process has started; the worker is billed from now on."""
        self.process = process
        self.meter = Meter(now)
        self.started_at = now
        self.state = WorkerState.INITIALIZING

    @property
    def has_served(self) -> bool:
        """Return whether the worker has taken a job that it was fit to run."""
        return self.num_taken > 0 and not self.is_unfit

    def polled(self, *, has_jobs: bool, now: float) -> list[str]:
        """Note a poll. Return the assigned jobs that the worker has dropped without a result.

        `has_jobs` is its own `job_in_progress`: it lists a job from receipt until its result was
        acknowledged, so 0 means that it holds none of those handed out before.
        """
        self._is_ready(now)
        if has_jobs:
            return []
        news = [job_id for job_id, assigned in self.jobs.items() if not assigned.is_dropped]
        for job_id in news:
            self.jobs[job_id].is_dropped = True
            self._unlisted(job_id, now)
        return news

    def pinged(self, listed: Collection[str], now: float) -> None:
        self.last_ping_at = now
        for job_id, assigned in self.jobs.items():
            if job_id in listed:
                assigned.unlisted_since = None
            else:
                self._unlisted(job_id, now)

    def took(self, job_id: str, now: float) -> None:
        self.jobs[job_id] = AssignedJob(taken_at=now)
        self.num_taken += 1
        self._set_busy(now)

    def release(self, job_id: str, now: float) -> bool:
        """Remove a job from the worker. Return False if it did not have it."""
        if self.jobs.pop(job_id, None) is None:
            return False
        # sent later, it would end the next execution of the same job
        self.stops = [each for each in self.stops if each != job_id]
        if not self.jobs:
            self._set_idle(now)
        return True

    def request_stop(self, job_id: str, now: float) -> None:
        """Send a job-stop for a job that the worker has."""
        assigned = self.jobs.get(job_id)
        if assigned is None or assigned.stop_requested_at is not None:
            return
        assigned.stop_requested_at = now
        self.stops.append(job_id)
        self.wake.notify()

    def pop_stops(self, now: float) -> list[str]:
        """Return each job to stop once, not too soon: the SDK loses an early job-stop."""
        ripe = [job_id for job_id in self.stops if self._can_stop(job_id, now)]
        self.stops = [job_id for job_id in self.stops if job_id not in ripe]
        return ripe

    def drain(self, reason: str, kill_at: float) -> None:
        """Give the worker no further job; its polls must be answered so that it can end.

        An unfit worker keeps the reason why it is.
        """
        self.state = WorkerState.DRAINING
        self.is_end_requested = True
        if not self.is_unfit:
            self.reason = reason
        self.kill_at = kill_at
        self.wake.notify()

    def cost_usd(self, now: float) -> float | None:
        """Return the cost so far; None for a GPU without a published price."""
        return cost_usd(self.meter.bill(now).billed_s, self.usd_per_second)

    def ended(self, now: float) -> None:
        """Note that the worker's process has ended, and close the bill."""
        self.meter.stopped(now)
        self.process = None
        self.idle_since = None

    def _can_stop(self, job_id: str, now: float) -> bool:
        assigned = self.jobs.get(job_id)
        return assigned is None or now >= assigned.taken_at + SETTLE_S

    def _is_ready(self, now: float) -> None:
        if self.state is WorkerState.INITIALIZING:
            self.ready_at = now
            self.meter.ready(now)
            self._set_idle(now)

    def _set_busy(self, now: float) -> None:
        self.idle_since = None
        self.meter.busy(now)
        if self.state is WorkerState.IDLE:
            self.state = WorkerState.RUNNING

    def _set_idle(self, now: float) -> None:
        self.idle_since = now
        self.meter.idle(now)
        if self.state in (WorkerState.RUNNING, WorkerState.INITIALIZING):
            self.state = WorkerState.IDLE

    def _unlisted(self, job_id: str, now: float) -> None:
        assigned = self.jobs[job_id]
        if assigned.unlisted_since is None:
            assigned.unlisted_since = now
