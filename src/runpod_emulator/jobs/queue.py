"""One endpoint's jobs: applies the life cycle to stored jobs and wakes waiting calls.

It knows no HTTP and no process: workers are ids.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from runpod_emulator.behaviour import Behaviour, Purged
from runpod_emulator.ids import new_job_id
from runpod_emulator.jobs import lifecycle
from runpod_emulator.jobs.job import Job, JobStatus, Policy, Webhook
from runpod_emulator.jobs.store import UNCHANGED, JobStore, Unchanged
from runpod_emulator.sdk_text import readable_error
from runpod_emulator.wake import Wake

logger = logging.getLogger(__name__)

PURGE_STEP = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A caller's request; `payload` is the JSON text of `input`."""

    payload: bytes
    policy: Policy
    is_sync: bool = False
    webhook_url: str | None = None
    s3_config: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenJob:
    """A job that was just marked IN_PROGRESS, with its input as JSON text."""

    job: Job
    payload: bytes


class QueueListener(Protocol):
    """Receives the events of a queue that others must act on."""

    def job_must_stop(self, worker_id: str, job_id: str) -> None:
        """Handle a job that the platform has ended and this worker still runs."""

    def webhook_is_due(self) -> None: ...


class JobQueue:
    """The operations on one endpoint's jobs.

    Methods return the changed job, or None if the event came too late, the job is unknown, or
    belongs to another endpoint; then nothing has changed. `work` wakes whenever a job is queued.
    """

    def __init__(
        self,
        endpoint_id: str,
        store: JobStore,
        behaviour: Behaviour,
        clock: Callable[[], float],
        listener: QueueListener,
    ) -> None:
        self.endpoint_id = endpoint_id
        self.work = Wake()
        self._store = store
        self._behaviour = behaviour
        self._clock = clock
        self._listener = listener
        self._is_closing = False
        self._ended: defaultdict[str, Wake] = defaultdict(Wake)
        self._num_waiting: defaultdict[str, int] = defaultdict(int)

    async def submit(self, submission: Submission) -> Job:
        now = self._clock()
        job = Job(
            id=new_job_id(is_sync=submission.is_sync),
            endpoint_id=self.endpoint_id,
            is_sync=submission.is_sync,
            policy=submission.policy,
            created_at=now,
            queued_at=now,
            webhook=Webhook(url=submission.webhook_url) if submission.webhook_url else None,
            s3_config=submission.s3_config,
        )
        job = lifecycle.submit(job)
        await self._store.add(job, submission.payload)
        self.work.notify()
        self._log("job queued", job)
        return job

    async def get(self, job_id: str) -> Job | None:
        """Return a job that its caller may see; None for one whose time is over, swept or not."""
        job = await self._store.get(job_id)
        if job is None or job.endpoint_id != self.endpoint_id or job.is_hidden:
            return None
        due = lifecycle.what_is_due(job, self._clock(), self._behaviour)
        if due is None:
            return job
        await self.sweep(job)
        return await self._visible(job_id)

    async def take(self, worker_id: str, limit: int) -> list[TakenJob]:
        """Mark up to `limit` waiting jobs IN_PROGRESS on this worker, oldest first."""
        taken = []
        for waiting in await self._next(limit):
            job = await self._change(
                waiting.id, lambda job: lifecycle.take(job, worker_id, self._clock())
            )
            payload = await self._store.payload(waiting.id)
            if job is not None and payload is not None:
                taken.append(TakenJob(job=job, payload=payload))
        return taken

    async def give_back(self, job_id: str, worker_id: str, reason: str) -> Job | None:
        """Requeue without counting a retry, e.g. when the poll that should get the job was gone."""
        return await self._change(
            job_id,
            lambda job: lifecycle.give_back(job, worker_id, self._clock(), reason),
            output=None,
        )

    async def lose(self, job_id: str, worker_id: str, reason: str) -> Job | None:
        """Requeue or give up a job that is lost, alone or with its worker."""
        return await self._change(
            job_id,
            lambda job: lifecycle.lose(job, worker_id, self._clock(), reason, self._behaviour),
            output=None,
        )

    async def complete(self, job_id: str, worker_id: str, output: bytes | None) -> Job | None:
        """End a job as COMPLETED. `output` is JSON text, or None for a result without one."""
        return await self._change(
            job_id,
            lambda job: lifecycle.complete(job, worker_id, self._clock(), self._behaviour),
            output=output,
        )

    async def fail(
        self, job_id: str, worker_id: str, error: str, output: bytes | None
    ) -> Job | None:
        return await self._change(
            job_id,
            lambda job: lifecycle.fail(job, worker_id, self._clock(), error, self._behaviour),
            output=output,
        )

    async def progress(self, job_id: str, worker_id: str, output: bytes) -> Job | None:
        return await self._change(
            job_id,
            lambda job: job if lifecycle.is_assigned(job, worker_id) else None,
            output=output,
        )

    async def reopen(self, job_id: str, worker_id: str, output: bytes) -> Job | None:
        """Apply progress after the result as the platform's bug does."""
        return await self._change(
            job_id, lambda job: lifecycle.reopen(job, worker_id, self._clock()), output=output
        )

    async def add_chunk(self, job_id: str, worker_id: str, chunk: bytes) -> bool:
        """Keep a streamed item if its job is this worker's. `chunk` is the posted JSON text."""
        job = await self._store.get(job_id)
        if job is None or not lifecycle.is_assigned(job, worker_id):
            return False
        await self._store.add_chunk(job_id, chunk)
        self._wake(job_id)
        return True

    async def cancel(self, job_id: str) -> Job | None:
        cancelled = await self._change(
            job_id, lambda job: lifecycle.cancel(job, self._clock(), self._behaviour)
        )
        return self._stopped(cancelled)

    async def retry(self, job_id: str) -> Job | None:
        changed = await self._change(
            job_id, lambda job: lifecycle.retry(job, self._clock()), output=None
        )
        if changed is not None:
            await self._store.clear_chunks(job_id)
        return changed

    async def set_ttl(self, job_id: str, ttl_s: float) -> Job | None:
        """Set the time to live, counted from submission like `policy.ttl`."""
        return await self._change(
            job_id, lambda job: replace(job, policy=replace(job.policy, ttl_s=ttl_s))
        )

    async def purge(self) -> int:
        """Empty the queue; jobs that run go on. Returns how many were removed."""
        removed = 0
        while waiting := await self._store.queued(self.endpoint_id, PURGE_STEP):
            for job in waiting:
                removed += await self._purge_one(job)
        return removed

    async def recover(self) -> int:
        """Requeue jobs that ran when the emulator ended, since their workers ended with it."""
        running = await self._store.in_progress(self.endpoint_id)
        for job in running:
            await self.give_back(job.id, job.worker_id or "", "emulator restarted")
        return len(running)

    async def sweep(self, job: Job) -> None:
        """Apply what is due (`lifecycle.what_is_due`) to a job as it was read.

        A job that has changed since is left to the next sweep.
        """
        now = self._clock()
        due = lifecycle.what_is_due(job, now, self._behaviour)
        if due is lifecycle.Due.TIME_OUT:
            self._stopped(await self._swap(job, lifecycle.time_out(job, now, self._behaviour)))
        elif due is lifecycle.Due.EXPIRE:
            await self._expire(job, now)

    async def wait(self, job_id: str, timeout_s: float) -> None:
        """Wait until the job ends, streams an item, or `timeout_s` have passed."""
        with self._waiting(job_id) as ended:
            await ended.wait(timeout_s)

    async def wait_final(self, job_id: str, timeout_s: float) -> Job | None:
        """Return the job once it has ended or `timeout_s` have passed; None if it was removed."""
        deadline = self._clock() + timeout_s
        with self._waiting(job_id) as changed:
            while True:
                next_change = changed.next_event()
                job = await self.get(job_id)
                left_s = deadline - self._clock()
                if job is None or job.status.is_final or left_s <= 0 or self._is_closing:
                    return job
                await changed.wait(left_s, next_change)

    def release(self) -> None:
        """End all waiting calls: jobs that have not ended by now do not end in this process."""
        self._is_closing = True
        for changed in self._ended.values():
            changed.notify()

    async def _next(self, limit: int) -> Sequence[Job]:
        """Return the head of the queue without jobs whose ttl is over, which no worker gets."""
        while True:
            waiting = await self._store.queued(self.endpoint_id, limit)
            now = self._clock()
            over = [job for job in waiting if lifecycle.what_is_due(job, now, self._behaviour)]
            if not over:
                return waiting
            for job in over:
                await self.sweep(job)

    async def _visible(self, job_id: str) -> Job | None:
        job = await self._store.get(job_id)
        return None if job is None or job.is_hidden else job

    async def _purge_one(self, job: Job) -> bool:
        if self._behaviour.purged is Purged.DELETED:
            return await self._remove(job)
        now = self._clock()
        purged = await self._change(
            job.id,
            lambda job: (
                lifecycle.cancel(job, now, self._behaviour, "purged")
                if job.status is JobStatus.IN_QUEUE
                else None
            ),
        )
        return purged is not None

    async def _expire(self, job: Job, now: float) -> None:
        expired = lifecycle.expire(job, now, self._behaviour)
        if expired is not None:
            await self._swap(job, expired)
        elif await self._remove(job) and job.status is JobStatus.IN_PROGRESS:
            self._stopped(job)

    async def _remove(self, job: Job) -> bool:
        is_removed = await self._store.remove(job)
        if is_removed:
            self._wake(job.id)
        return is_removed

    def _stopped(self, job: Job | None) -> Job | None:
        """Send a job-stop for a job that the platform has ended."""
        if job is not None and job.worker_id is not None:
            self._listener.job_must_stop(job.worker_id, job.id)
        return job

    async def _change(
        self,
        job_id: str,
        transition: Callable[[Job], Job | None],
        *,
        output: bytes | Unchanged | None = UNCHANGED,
    ) -> Job | None:
        """Apply a transition by compare and swap, again if another change came first."""
        while (job := await self._store.get(job_id)) is not None:
            changed = transition(job) if job.endpoint_id == self.endpoint_id else None
            if changed is None:
                return None
            if swapped := await self._swap(job, changed, output):
                return swapped
        return None

    async def _swap(
        self, before: Job, after: Job | None, output: bytes | Unchanged | None = UNCHANGED
    ) -> Job | None:
        """Store `after` in place of `before`; None if there is nothing to store or it came late."""
        if after is None or not await self._store.replace(after, output=output):
            return None
        after = replace(after, revision=after.revision + 1)
        self._announce(before, after)
        return after

    def _announce(self, before: Job, after: Job) -> None:
        if after.status is JobStatus.IN_QUEUE:
            self.work.notify()
        if after.status is not before.status:
            self._wake(before.id)
            self._log_change(after)
        if after.webhook is not None and after.webhook.next_at is not None:
            self._listener.webhook_is_due()

    def _log_change(self, job: Job) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        if job.status is JobStatus.IN_PROGRESS:
            self._log("job taken", job, worker=job.worker_id, delay_ms=job.delay_ms)
        elif job.status is JobStatus.IN_QUEUE:
            self._log("job queued again", job, reason=job.history[-1].reason, retries=job.retries)
        else:
            error = readable_error(job.error or "").partition("\n")[0] or None
            took = {"worker": job.worker_id, "execution_ms": job.execution_ms}
            self._log("job ended", job, status=job.status, **took, error=error)

    def _log(self, message: str, job: Job, **extra: object) -> None:
        logger.info(message, extra={"endpoint": self.endpoint_id, "job": job.id, **extra})

    def _wake(self, job_id: str) -> None:
        if job_id in self._ended:
            self._ended[job_id].notify()

    @contextmanager
    def _waiting(self, job_id: str) -> Iterator[Wake]:
        """Count a waiting call for this job; the last one to end removes the bookkeeping."""
        self._num_waiting[job_id] += 1
        try:
            yield self._ended[job_id]
        finally:
            self._num_waiting[job_id] -= 1
            if not self._num_waiting[job_id]:
                del self._num_waiting[job_id]
                self._ended.pop(job_id, None)
