"""The interface of a job store, implemented on SQLite and later perhaps on a cluster's queue.

A store keeps records and their payloads and orders them. It decides nothing: life cycle, retries
and scaling are elsewhere. Every change is a compare and swap on a job's `revision`, so that a
store may be shared by several gateways.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from runpod_emulator.jobs.job import Job, JobStatus


class Unchanged:
    """The type of `UNCHANGED`."""


UNCHANGED: Final = Unchanged()
"""Value with which `JobStore.replace` leaves the stored output as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The waiting jobs that scaling counts: low priority is left out.

    `oldest_queued_at` is None when `waiting` is 0.
    """

    waiting: int
    oldest_queued_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """An endpoint's counts since its database was created, removed jobs included."""

    completed: int = 0
    failed: int = 0
    retried: int = 0


class JobStore(Protocol):
    """A store of jobs. Methods raise `StoreUnusable` if its storage cannot be read or written."""

    async def add(self, job: Job, payload: bytes) -> None:
        """Store a new job, durably before it returns. `payload` is the job's `input` as JSON."""

    async def get(self, job_id: str) -> Job | None: ...

    async def replace(self, job: Job, *, output: bytes | Unchanged | None = UNCHANGED) -> bool:
        """Store `job` if its `revision` is still the stored one, which then counts up by one.

        Return False, and change nothing, if another change came first or the job is gone. `output`
        (JSON text, or None to clear) changes together with the record. Counts the endpoint's
        tally when the status becomes COMPLETED or FAILED, and when `retries` grows.
        """

    async def remove(self, job: Job) -> bool:
        """Remove a job with all that belongs to it, if its revision is still the stored one."""

    async def payload(self, job_id: str) -> bytes | None: ...

    async def output(self, job_id: str) -> bytes | None: ...

    async def queued(self, endpoint_id: str, limit: int) -> Sequence[Job]:
        """Return the next jobs to take, in order of submission; a requeued job keeps its place."""

    async def in_progress(self, endpoint_id: str) -> Sequence[Job]: ...

    async def recent(self, endpoint_id: str, limit: int) -> Sequence[Job]:
        """Return the jobs submitted last, newest first, whatever their status."""

    async def due(self, now: float, limit: int) -> Sequence[Job]:
        """Return jobs whose time has come (`lifecycle.due_at`), earliest first."""

    async def webhooks_due(self, now: float, limit: int) -> Sequence[Job]:
        """Return jobs whose webhook's `next_at` has come, earliest first."""

    async def backlog(self, endpoint_id: str) -> Backlog: ...

    async def num_queued(self, endpoint_id: str) -> int:
        """Return the number of waiting jobs, of low priority too; costs less than all `counts`."""

    async def counts(self, endpoint_id: str) -> Mapping[JobStatus, int]:
        """Return the number of jobs in each status, without hidden ones; missing statuses are 0."""

    async def tally(self, endpoint_id: str) -> Tally: ...

    async def add_chunk(self, job_id: str, chunk: bytes) -> None:
        """Append one streamed item, as the JSON text that the worker posted."""

    async def pop_chunks(self, job_id: str) -> Sequence[bytes]:
        """Return the items in order, each only once."""

    async def clear_chunks(self, job_id: str) -> None: ...

    async def close(self) -> None: ...


class StoreUnusable(Exception):
    """The storage cannot be read or written; the message names it and the cause."""
