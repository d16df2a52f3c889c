"""Judges the outcome of a chaos run from its jobs; it runs nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.jobs.job import Event, Job, JobStatus

PLATFORMS_RETRIES = Behaviour().max_retries
"""Largest number of retries with which a job may end FAILED, if its history explains it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosSettings:
    """Settings of a chaos run. `kill_every` counts jobs that have ended, `refusal_rate` is a share
    of the posts of results.
    """

    num_jobs: int = 1000
    num_workers: int = 4
    concurrency: int = 4
    max_retries: int = 5
    kill_every: int = 50
    refusal_rate: float = 0.05
    seed: int = 0
    limit_s: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosResult:
    """The end of every job, and all kills and refusals. `deliveries` counts webhooks by job."""

    settings: ChaosSettings
    jobs: Sequence[Job]
    deliveries: Mapping[str, int]
    killed: Sequence[str]
    num_refused_posts: int
    wall_s: float

    @property
    def failed(self) -> list[Job]:
        return [job for job in self.jobs if job.status is JobStatus.FAILED]

    @property
    def conspicuous(self) -> list[Job]:
        """Jobs that did not complete, or whose history does not explain their end."""
        return [
            job
            for job in self.jobs
            if job.status is not JobStatus.COMPLETED or not self._is_explained(job)
        ]

    @property
    def num_completed(self) -> int:
        return sum(job.status is JobStatus.COMPLETED for job in self.jobs)

    @property
    def num_executions(self) -> int:
        return sum(job.executions for job in self.jobs)

    @property
    def num_delivered(self) -> int:
        """Number of jobs whose webhook arrived at least once."""
        return sum(bool(self.deliveries.get(job.id)) for job in self.jobs)

    @property
    def num_duplicates(self) -> int:
        return sum(self.deliveries.values()) - self.num_delivered

    def document(self) -> dict[str, object]:
        """Return all figures, for JSON."""
        retries = Counter(job.retries for job in self.jobs)
        requeues = Counter(
            event.reason
            for job in self.jobs
            for event in job.history[1:]
            if event.status is JobStatus.IN_QUEUE
        )
        return {
            **asdict(self.settings),
            "completed": self.num_completed,
            "failed": len(self.failed),
            "executions": self.num_executions,
            "jobs_by_retries": {str(each): retries[each] for each in sorted(retries)},
            "requeues": dict(requeues),
            "kills": len(self.killed),
            "refused_posts": self.num_refused_posts,
            "webhooks_delivered": self.num_delivered,
            "webhooks_duplicate": self.num_duplicates,
            "wall_s": round(self.wall_s, 1),
            "broken_promises": self.broken_promises(),
        }

    def broken_promises(self) -> list[str]:
        """Return the broken guarantees; empty if there are none."""
        may_fail = self.settings.max_retries <= PLATFORMS_RETRIES
        num_gone = self.settings.num_jobs - len(self.jobs)
        broken = [f"{num_gone} jobs are gone"] if num_gone else []
        for job in self.jobs:
            if not job.status.is_final:
                broken.append(f"{job.id}: still {job.status}")
            elif job.status is JobStatus.FAILED and not may_fail:
                broken.append(f"{job.id}: FAILED with {self.settings.max_retries} retries allowed")
            elif not self._is_explained(job):
                broken.append(f"{job.id}: {job.status}, which its history does not explain")
            if not self.deliveries.get(job.id):
                broken.append(f"{job.id}: its webhook was not delivered")
        return broken

    def _is_explained(self, job: Job) -> bool:
        return is_explained(job, self.settings.max_retries, self.killed)


def is_explained(job: Job, max_retries: int, killed: Sequence[str]) -> bool:
    """Return whether a job's history explains its end.

    Each execution but the last was lost with a worker that was killed, or by a worker that no
    longer lists the job, or never began because the poll was gone. A job may have FAILED only after
    more losses than its retries.
    """
    takes = [event for event in job.history if event.reason == "taken"]
    losses = [event for event in job.history if _is_loss(event, killed)]
    num_returned = sum(event.reason == "poll was gone" for event in job.history)
    num_unfinished = len(losses) + num_returned
    if len(takes) != job.executions:
        return False
    if job.status is JobStatus.COMPLETED:
        return len(losses) == job.retries and job.executions == num_unfinished + 1
    given_up = f"job timed out after {max_retries} retries"
    is_lost_last = bool(losses) and losses[-1] == job.history[-1] and job.error == given_up
    return is_lost_last and len(losses) == max_retries + 1 and job.executions == num_unfinished


def _is_loss(event: Event, killed: Sequence[str]) -> bool:
    reason = event.reason.removeprefix("given up: ")
    is_killed = reason.startswith("worker lost: ") and event.worker_id in killed
    return is_killed or reason.startswith("not in the worker's pings")
