"""The queue on its real store: whatever happens to jobs, in whatever order, none is lost.

A state machine does to the queue all that callers, workers, time and SIGKILL can do, and keeps a
plain model of what must have become of every job.
"""

import asyncio
import shutil
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from support.jobs import OTHER_WORKER, WORKER, answer, make_policy

from runpod_emulator.behaviour import Behaviour, ExpiredInQueue, Purged
from runpod_emulator.jobs import lifecycle
from runpod_emulator.jobs.job import Job, JobStatus, Policy
from runpod_emulator.jobs.queue import JobQueue, Submission
from runpod_emulator.jobs.sqlite_store import SqliteStore
from runpod_emulator.jobs.store import Backlog, Tally
from runpod_emulator.jobs.webhooks import WebhookSender

QUEUED = JobStatus.IN_QUEUE
RUNNING = JobStatus.IN_PROGRESS
COMPLETED = JobStatus.COMPLETED
FAILED = JobStatus.FAILED
CANCELLED = JobStatus.CANCELLED
TIMED_OUT = JobStatus.TIMED_OUT

URL = "http://127.0.0.1:9/hook"
MANY = 1000


def ids(jobs):
    return [job.id for job in jobs]


class Listener:
    """Remembers what the queue tells."""

    def __init__(self):
        self.stops = []
        self.is_told_of_webhook = False

    def job_must_stop(self, worker_id, job_id):
        self.stops.append((worker_id, job_id))

    def webhook_is_due(self):
        self.is_told_of_webhook = True


@dataclass(slots=True, kw_only=True)
class Expected:
    """What must be true of one job. A caller's /retry begins another life of it."""

    id: str
    payload: bytes
    is_sync: bool
    policy: Policy
    has_webhook: bool
    created_at: float
    queued_at: float
    status: JobStatus = QUEUED
    started_at: float | None = None
    finished_at: float | None = None
    worker_id: str | None = None
    retries: int = 0
    executions: int = 0
    is_hidden: bool = False
    is_gone: bool = False
    output: bytes | None = None
    chunks: list[bytes] = field(default_factory=list)
    lives: int = 1
    results_in_this_life: int = 0
    attempts: int = 0
    next_at: float | None = None
    delivered_at: float | None = None

    @property
    def is_visible(self):
        return not self.is_gone and not self.is_hidden

    def is_held_by(self, worker_id):
        return self.is_visible and self.status is RUNNING and self.worker_id == worker_id


COMPARED = (
    *("is_sync", "policy", "created_at", "queued_at", "status", "started_at", "finished_at"),
    *("worker_id", "retries", "executions", "is_hidden"),
)

BEHAVIOURS = st.builds(
    Behaviour,
    max_retries=st.integers(0, 2),
    purged=st.sampled_from(Purged),
    expired_in_queue=st.sampled_from(ExpiredInQueue),
    execution_timeout_status=st.sampled_from(["FAILED", "TIMED_OUT"]),
    webhook_on_cancel=st.booleans(),
    webhook_retries=st.integers(0, 2),
)
SUBMISSIONS = st.builds(
    Submission,
    payload=st.sampled_from([b"{}", b'{"prompt":"a red circle"}']),
    policy=st.builds(
        make_policy,
        execution_timeout_s=st.sampled_from([5.0, 600.0]),
        ttl_s=st.sampled_from([10.0, 3600.0, 86400.0, 86400.0]),
        is_low_priority=st.booleans(),
    ),
    is_sync=st.booleans(),
    webhook_url=st.sampled_from([None, URL, URL]),
)
HOLDER = "whoever has or had it"
WORKERS = st.sampled_from([HOLDER, HOLDER, HOLDER, WORKER, OTHER_WORKER])
OUTPUTS = st.sampled_from([None, b"1", b'{"images":[]}'])
FAILURES = st.sampled_from(["HTTP 500", None])
SOME_TIME_S = st.sampled_from([1.0, 1.0, 1.0, 5.0, 5.0, 10.0, 10.0, 60.0, 600.0, 1800.0, 86400.0])


def there_are(*statuses):
    """For a rule that is of little use without such jobs; `pick` may give it others as well."""
    return precondition(lambda self: any(self.in_status(status) for status in statuses))


class QueueMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 1000.0
        self.expected = {}
        self.tally = Tally()
        self.stops = []
        self.must_tell_of_webhook = False
        self.seen_due = []
        self.listener = Listener()
        self.sends = {}
        self.resources = ExitStack()
        folder = Path(self.resources.enter_context(TemporaryDirectory()))
        self.paths = (folder / f"{number}.db" for number in count())

    @initialize(behaviour=BEHAVIOURS)
    def start(self, behaviour):
        self.behaviour = behaviour
        self.path = next(self.paths)
        self.open()
        self.resources.callback(lambda: answer(self.store.close()))

    def open(self):
        self.store = SqliteStore(self.path, partial(lifecycle.due_at, behaviour=self.behaviour))
        self.queue = JobQueue("ep", self.store, self.behaviour, lambda: self.now, self.listener)
        self.sender = WebhookSender(
            self.store, self.behaviour, lambda: self.now, self.body, self.forget
        )

    def teardown(self):
        self.resources.close()

    async def body(self, job):
        return await self.store.payload(job.id)

    async def forget(self, job):
        await self.store.remove(job)

    # callers

    @rule(asked=st.lists(SUBMISSIONS, min_size=1, max_size=3))
    def submit(self, asked):
        submitted = [answer(self.queue.submit(each)) for each in asked]
        for job, each in zip(submitted, asked, strict=True):
            self.expected[job.id] = Expected(
                id=job.id,
                payload=each.payload,
                is_sync=each.is_sync,
                policy=each.policy,
                has_webhook=each.webhook_url is not None,
                created_at=self.now,
                queued_at=self.now,
            )

    @there_are(*JobStatus)
    @rule(data=st.data(), ttl_s=st.sampled_from([None, None, None, 0.0, 30.0, 1e6]))
    def look_at(self, data, ttl_s):
        job = self.pick(data, *JobStatus)
        self.age(job)
        self.check_answer(answer(self.queue.get(job.id)), job.is_visible)
        if job.is_visible and ttl_s is not None:
            job.policy = replace(job.policy, ttl_s=ttl_s)
            self.check_answer(answer(self.queue.set_ttl(job.id, ttl_s)), True)

    @there_are(QUEUED, RUNNING)
    @rule(data=st.data())
    def cancel(self, data):
        job = self.pick(data, QUEUED, RUNNING)
        cancels = job.is_visible and not job.status.is_final
        if cancels:
            self.stop_worker(job)
            self.finish(job, CANCELLED)
        self.check_answer(answer(self.queue.cancel(job.id)), cancels)

    @there_are(FAILED, TIMED_OUT)
    @rule(data=st.data())
    def retry(self, data):
        job = self.pick(data, FAILED, TIMED_OUT)
        retries = job.is_visible and job.status in (FAILED, TIMED_OUT)
        if retries:
            self.requeue(job)
            job.finished_at = job.next_at = job.delivered_at = None
            job.retries = job.attempts = job.results_in_this_life = 0
            job.lives += 1
            job.chunks = []
        self.check_answer(answer(self.queue.retry(job.id)), retries)

    @precondition(lambda self: len(self.in_status(QUEUED)) > 2)
    @rule()
    def purge(self):
        waiting = self.in_status(QUEUED)
        for job in waiting:
            if self.behaviour.purged is Purged.DELETED:
                job.is_gone = True
            else:
                self.finish(job, CANCELLED)
        assert answer(self.queue.purge()) == len(waiting)

    @there_are(RUNNING, COMPLETED, FAILED)
    @rule(data=st.data())
    def read_stream(self, data):
        job = self.pick(data, RUNNING, COMPLETED, FAILED)
        assert answer(self.store.pop_chunks(job.id)) == ([] if job.is_gone else job.chunks)
        job.chunks = []

    # workers, also such as had the job once or never

    @there_are(QUEUED)
    @rule(worker_id=st.sampled_from([WORKER, OTHER_WORKER]), limit=st.integers(1, 3))
    def take(self, worker_id, limit):
        while any([self.age(job) for job in self.in_status(QUEUED)[:limit]]):
            pass
        waiting = self.in_status(QUEUED)[:limit]
        for job in waiting:
            job.status, job.worker_id, job.started_at = RUNNING, worker_id, self.now
            job.executions += 1
        taken = answer(self.queue.take(worker_id, limit))
        assert [(each.job.id, each.payload) for each in taken] == [
            (job.id, job.payload) for job in waiting
        ]

    @there_are(RUNNING)
    @rule(data=st.data(), who=WORKERS, output=OUTPUTS)
    def complete(self, data, who, output):
        job = self.pick(data, RUNNING)
        worker_id = self.worker(job, who)
        counts = job.is_held_by(worker_id)
        if counts:
            self.finish(job, COMPLETED, output=output)
        self.check_result(job, answer(self.queue.complete(job.id, worker_id, output)), counts)

    @there_are(RUNNING)
    @rule(data=st.data(), who=WORKERS, output=OUTPUTS)
    def fail(self, data, who, output):
        job = self.pick(data, RUNNING)
        worker_id = self.worker(job, who)
        counts = job.is_held_by(worker_id)
        if counts:
            self.finish(job, FAILED, output=output)
        self.check_result(job, answer(self.queue.fail(job.id, worker_id, "broken", output)), counts)

    @there_are(RUNNING)
    @rule(data=st.data(), who=WORKERS)
    def progress(self, data, who):
        job = self.pick(data, RUNNING)
        worker_id = self.worker(job, who)
        counts = job.is_held_by(worker_id)
        if counts:
            job.output = b'"half"'
        self.check_answer(answer(self.queue.progress(job.id, worker_id, b'"half"')), counts)

    @there_are(RUNNING)
    @rule(data=st.data(), who=WORKERS, chunk=st.sampled_from([b'{"output":1}', b'{"output":2}']))
    def stream(self, data, who, chunk):
        job = self.pick(data, RUNNING)
        worker_id = self.worker(job, who)
        counts = job.is_held_by(worker_id)
        if counts:
            job.chunks = [*job.chunks, chunk]
        assert answer(self.queue.add_chunk(job.id, worker_id, chunk)) is counts

    @there_are(RUNNING)
    @rule(data=st.data(), who=WORKERS)
    def give_back(self, data, who):
        job = self.pick(data, RUNNING)
        worker_id = self.worker(job, who)
        counts = job.is_held_by(worker_id)
        if counts:
            self.requeue(job)
        self.check_answer(answer(self.queue.give_back(job.id, worker_id, "poll gone")), counts)

    @there_are(RUNNING)
    @rule(data=st.data(), who=WORKERS)
    def lose(self, data, who):
        job = self.pick(data, RUNNING)
        worker_id = self.worker(job, who)
        counts = job.is_held_by(worker_id)
        if counts and job.retries < self.behaviour.max_retries:
            self.requeue(job)
            job.retries += 1
            self.tally = replace(self.tally, retried=self.tally.retried + 1)
        elif counts:
            self.finish(job, FAILED, output=None)
        self.check_answer(answer(self.queue.lose(job.id, worker_id, "no ping")), counts)

    # time

    @there_are(*JobStatus)
    @rule(seconds=SOME_TIME_S)
    def pass_time_and_sweep(self, seconds):
        self.now += seconds
        for job in self.expected.values():
            while self.age(job):
                pass
        for _ in range(3):
            for job in answer(self.store.due(self.now, MANY)):
                answer(self.queue.sweep(job))
        assert answer(self.store.due(self.now, MANY)) == []

    @there_are(*JobStatus)
    @rule(seconds=SOME_TIME_S)
    def pass_time_and_see_what_is_due(self, seconds):
        self.now += seconds
        self.seen_due = list(answer(self.store.due(self.now, MANY)))

    @precondition(lambda self: self.seen_due)
    @rule()
    def sweep_what_was_due(self):
        """What was seen may have changed since; then nothing happens, or what is due by now."""
        for seen in self.seen_due:
            before = answer(self.store.get(seen.id))
            answer(self.queue.sweep(seen))
            if answer(self.store.get(seen.id)) != before:
                assert self.age(self.expected[seen.id]), f"{before} was not due"
        self.seen_due = []

    # webhooks

    @precondition(lambda self: self.unsent())
    @rule(failure=FAILURES, is_quick=st.booleans())
    def begin_webhook(self, failure, is_quick):
        due = answer(self.store.webhooks_due(self.now, MANY))
        unsent = [job for job in due if job.id not in self.sends]
        assert sorted(ids(unsent)) == sorted(self.unsent())
        self.sends[unsent[0].id] = unsent[0]
        if is_quick:
            self.record_webhook(unsent[0].id, failure)

    @precondition(lambda self: self.sends)
    @rule(failure=FAILURES)
    def end_webhook(self, failure):
        self.record_webhook(next(iter(self.sends)), failure)

    def record_webhook(self, job_id, failure):
        """As the sender does it; of an end that is not the last one any more it says nothing."""
        sent = self.sends.pop(job_id)
        job = self.expected[job_id]
        is_last_end = (job.attempts, job.next_at) == (sent.webhook.attempts, sent.webhook.next_at)
        if not job.is_gone and is_last_end:
            job.attempts += 1
            is_over = failure is None or job.attempts > self.behaviour.webhook_retries
            retry_at = self.now + self.behaviour.webhook_retry_interval_s
            job.next_at = None if is_over else retry_at
            job.delivered_at = self.now if failure is None else None
            job.is_gone = is_over and job.is_hidden
        answer(self.sender._record(sent, failure))

    # the emulator

    @there_are(RUNNING)
    @rule()
    def sigkill(self):
        """The files lie as they are; the kernel gives back the lock of the dead process."""
        killed, before, self.path = self.store, self.path, next(self.paths)
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{before}{suffix}", f"{self.path}{suffix}")
        answer(killed.close())
        self.open()
        # what was being sent is not known any longer; what was running runs again
        self.sends, self.seen_due = {}, []
        running = self.in_status(RUNNING)
        for job in running:
            self.requeue(job)
        assert answer(self.queue.recover()) == len(running)

    # what follows from what

    def pick(self, data, *statuses):
        """Mostly a job in one of these statuses, sometimes any other, gone or not."""
        fitting = [job for status in statuses for job in self.in_status(status)]
        candidates = [*fitting, *fitting, *self.expected.values()]
        return candidates[data.draw(st.integers(0, len(candidates) - 1))]

    def worker(self, job, who):
        return who if who != HOLDER else job.worker_id or WORKER

    def in_status(self, status):
        """In order of submission."""
        return [job for job in self.expected.values() if job.is_visible and job.status is status]

    def unsent(self):
        """Ids of the jobs whose webhook is due and not on its way."""
        return [
            job.id
            for job in self.expected.values()
            if not job.is_gone and job.next_at is not None and job.next_at <= self.now
            if job.id not in self.sends
        ]

    def requeue(self, job):
        job.status, job.queued_at = QUEUED, self.now
        job.worker_id = job.started_at = job.output = None

    def finish(self, job, status, **output):
        job.status, job.finished_at = status, self.now
        job.output = output.get("output", job.output)
        self.tally = replace(
            self.tally,
            completed=self.tally.completed + (status is COMPLETED),
            failed=self.tally.failed + (status is FAILED),
        )
        if job.has_webhook and (status is not CANCELLED or self.behaviour.webhook_on_cancel):
            job.next_at = self.now
            self.must_tell_of_webhook = True

    def stop_worker(self, job):
        if job.status is RUNNING:
            self.stops.append((job.worker_id, job.id))

    def age(self, job):
        """Do what time asks for; False if that is nothing."""
        if not job.is_visible:
            return False
        ends_at = job.created_at + job.policy.ttl_s
        if job.status.is_final:
            behaviour = self.behaviour
            kept_s = behaviour.sync_retention_s if job.is_sync else behaviour.async_retention_s
            ends_at = min(ends_at, job.finished_at + kept_s)
        if self.now >= ends_at:
            self.expire(job)
            return True
        if job.status is RUNNING and self.now >= job.started_at + job.policy.execution_timeout_s:
            self.stop_worker(job)
            self.finish(job, JobStatus(self.behaviour.execution_timeout_status))
            return True
        return False

    def expire(self, job):
        if job.status is QUEUED and self.behaviour.expired_in_queue is ExpiredInQueue.TIMED_OUT:
            self.finish(job, TIMED_OUT)
            kept_until = self.now + self.behaviour.async_retention_s
            job.policy = replace(job.policy, ttl_s=kept_until - job.created_at)
        elif job.next_at is not None:
            job.is_hidden = True
        else:
            self.stop_worker(job)
            job.is_gone = True

    # what must hold

    def check_answer(self, answered, is_accepted):
        """A method answers with the job as it is now, or with None and nothing has changed."""
        assert (answered is not None) == is_accepted
        if answered is not None:
            assert answered == answer(self.store.get(answered.id))

    def check_result(self, job, answered, is_accepted):
        self.check_answer(answered, is_accepted)
        job.results_in_this_life += is_accepted
        assert job.results_in_this_life <= 1

    @invariant()
    def every_job_is_kept_as_it_must_be(self):
        for job in self.expected.values():
            kept = answer(self.store.get(job.id))
            assert (kept is None) == job.is_gone
            if kept is not None:
                for name in COMPARED:
                    assert getattr(kept, name) == getattr(job, name), name
                assert answer(self.store.output(job.id)) == job.output
                assert answer(self.store.payload(job.id)) == job.payload
                self.check_history(kept, job)
                self.check_webhook(kept, job)

    def check_history(self, kept: Job, job: Expected):
        statuses = [event.status for event in kept.history]
        assert statuses[0] is QUEUED and statuses[-1] is kept.status
        assert all(after in lifecycle.LEGAL[before] for before, after in pairwise(statuses))
        assert statuses.count(RUNNING) == kept.executions
        ends = [status for status in statuses if status.is_final]
        assert len(ends) == job.lives - (not kept.status.is_final)
        assert kept.retries <= self.behaviour.max_retries

    def check_webhook(self, kept: Job, job: Expected):
        assert (kept.webhook is not None) == job.has_webhook
        if kept.webhook is None:
            return
        webhook = kept.webhook
        assert (webhook.attempts, webhook.next_at, webhook.delivered_at) == (
            *(job.attempts, job.next_at, job.delivered_at),
        )
        is_reported = kept.status is not CANCELLED or self.behaviour.webhook_on_cancel
        is_given_up = webhook.attempts > self.behaviour.webhook_retries
        is_known = webhook.next_at is not None or webhook.delivered_at is not None or is_given_up
        assert is_known == (kept.status.is_final and is_reported)

    @invariant()
    def store_finds_and_counts_what_there_is(self):
        waiting = self.in_status(QUEUED)
        assert ids(answer(self.store.queued("ep", MANY))) == ids(waiting)
        assert ids(answer(self.store.in_progress("ep"))) == ids(self.in_status(RUNNING))
        assert answer(self.store.counts("ep")) == {
            status: len(self.in_status(status)) for status in JobStatus
        }
        assert answer(self.store.tally("ep")) == self.tally
        pressing = [job.queued_at for job in waiting if not job.policy.is_low_priority]
        oldest = min(pressing, default=None)
        backlog = Backlog(waiting=len(pressing), oldest_queued_at=oldest)
        assert answer(self.store.backlog("ep")) == backlog

    @invariant()
    def those_who_must_act_are_notified(self):
        assert sorted(self.listener.stops) == sorted(self.stops)
        assert self.listener.is_told_of_webhook or not self.must_tell_of_webhook
        self.listener.is_told_of_webhook = self.must_tell_of_webhook = False


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestJobQueue = QueueMachine.TestCase


# who waits is woken


class Scene:
    """A queue on a store of its own, and a clock that stands."""

    def __init__(self, path, behaviour):
        self.now = 1000.0
        self.store = SqliteStore(path, partial(lifecycle.due_at, behaviour=behaviour))
        self.queue = JobQueue("ep", self.store, behaviour, lambda: self.now, Listener())

    async def submit(self):
        return await self.queue.submit(Submission(payload=b"1", policy=make_policy()))

    async def sweep_in(self, seconds):
        self.now += seconds
        for job in await self.store.due(self.now, MANY):
            await self.queue.sweep(job)


@asynccontextmanager
async def scene_at(path, behaviour):
    scene = Scene(path, behaviour)
    try:
        yield scene
    finally:
        await scene.store.close()


DELETING = Behaviour(purged=Purged.DELETED)
KEEPING = Behaviour(expired_in_queue=ExpiredInQueue.TIMED_OUT)
NO_RETRY = Behaviour(max_retries=0)
ENDS = {
    "result": (RUNNING, Behaviour(), COMPLETED, lambda s, id: s.queue.complete(id, WORKER, b"1")),
    "error": (RUNNING, Behaviour(), FAILED, lambda s, id: s.queue.fail(id, WORKER, "bad", None)),
    "given up": (RUNNING, NO_RETRY, FAILED, lambda s, id: s.queue.lose(id, WORKER, "no ping")),
    "cancelled": (QUEUED, Behaviour(), CANCELLED, lambda s, id: s.queue.cancel(id)),
    "purged": (QUEUED, Behaviour(), CANCELLED, lambda s, id: s.queue.purge()),
    "purged for good": (QUEUED, DELETING, None, lambda s, id: s.queue.purge()),
    "execution timeout": (RUNNING, Behaviour(), FAILED, lambda s, id: s.sweep_in(600.0)),
    "ttl while it runs": (RUNNING, Behaviour(), None, lambda s, id: s.sweep_in(86400.0)),
    "ttl in the queue": (QUEUED, Behaviour(), None, lambda s, id: s.sweep_in(86400.0)),
    "ttl, kept": (QUEUED, KEEPING, TIMED_OUT, lambda s, id: s.sweep_in(86400.0)),
}


@pytest.mark.parametrize("end", ENDS)
def test_waiting_caller_hears_of_the_end_at_once(tmp_path, end):
    status, behaviour, expected, happen = ENDS[end]

    async def scenario():
        async with scene_at(tmp_path / "jobs.db", behaviour) as scene:
            job = await scene.submit()
            if status is RUNNING:
                await scene.queue.take(WORKER, 1)
            waiting = asyncio.create_task(scene.queue.wait_final(job.id, 1e6))
            await asyncio.sleep(0)
            await happen(scene, job.id)
            final = await asyncio.wait_for(waiting, 10)
            assert (final and final.status) == expected

    asyncio.run(scenario())


def test_caller_who_has_waited_long_enough_gets_the_job_as_it_is(tmp_path):
    async def scenario():
        async with scene_at(tmp_path / "jobs.db", Behaviour()) as scene:
            job = await scene.submit()
            assert await scene.queue.wait_final(job.id, 0) == job
            assert await scene.queue.wait_final("nobody", 1e6) is None

    asyncio.run(scenario())


def test_streamed_item_wakes_who_waits_for_it(tmp_path):
    async def scenario():
        async with scene_at(tmp_path / "jobs.db", Behaviour()) as scene:
            job = await scene.submit()
            await scene.queue.take(WORKER, 1)
            waiting = asyncio.create_task(scene.queue.wait(job.id, 1e6))
            await asyncio.sleep(0)
            await scene.queue.add_chunk(job.id, WORKER, b"1")
            await asyncio.wait_for(waiting, 10)

    asyncio.run(scenario())


QUEUED_BY = {
    "submit": lambda s, id: s.submit(),
    "give_back": lambda s, id: s.queue.give_back(id, WORKER, "poll gone"),
    "lose": lambda s, id: s.queue.lose(id, WORKER, "no ping"),
    "recover": lambda s, id: s.queue.recover(),
}


@pytest.mark.parametrize("event", QUEUED_BY)
def test_queued_job_wakes_polls(tmp_path, event):
    async def scenario():
        async with scene_at(tmp_path / "jobs.db", Behaviour()) as scene:
            job = await scene.submit()
            await scene.queue.take(WORKER, 1)
            poll = asyncio.create_task(scene.queue.work.wait(1e6))
            await asyncio.sleep(0)
            await QUEUED_BY[event](scene, job.id)
            await asyncio.wait_for(poll, 10)

    asyncio.run(scenario())


def test_another_endpoints_queue_does_nothing_to_a_job(tmp_path):
    async def scenario():
        async with scene_at(tmp_path / "jobs.db", Behaviour()) as scene:
            job = await scene.submit()
            other = JobQueue("other", scene.store, Behaviour(), lambda: scene.now, Listener())
            assert await other.get(job.id) is None
            assert await other.cancel(job.id) is None
            assert await other.take(WORKER, 1) == []
            assert await other.purge() == 0
            assert await scene.queue.get(job.id) == job

    asyncio.run(scenario())


def test_retried_job_begins_with_nothing_of_its_first_life(tmp_path):
    async def scenario():
        async with scene_at(tmp_path / "jobs.db", Behaviour()) as scene:
            job = await scene.submit()
            await scene.queue.take(WORKER, 1)
            await scene.queue.add_chunk(job.id, WORKER, b"1")
            await scene.queue.fail(job.id, WORKER, "broken", b"2")
            again = await scene.queue.retry(job.id)
            assert again is not None
            assert (again.id, again.status, again.error) == (job.id, QUEUED, None)
            assert await scene.store.output(job.id) is None
            assert await scene.store.pop_chunks(job.id) == []
            assert await scene.store.payload(job.id) == b"1"

    asyncio.run(scenario())


def test_log_says_what_happens_to_a_job_and_how_long_it_took(tmp_path, caplog):
    async def scenario():
        async with scene_at(tmp_path / "jobs.db", Behaviour()) as scene:
            job = await scene.submit()
            scene.now += 1.5
            await scene.queue.take(WORKER, 1)
            await scene.queue.lose(job.id, WORKER, "no ping")
            await scene.queue.take(WORKER, 1)
            scene.now += 0.25
            await scene.queue.fail(job.id, WORKER, "bad\nTraceback", None)

    with caplog.at_level("INFO", "runpod_emulator.jobs.queue"):
        asyncio.run(scenario())
    queued, taken, again, _, ended = (vars(record) for record in caplog.records)
    assert (queued["message"], queued["endpoint"]) == ("job queued", "ep")
    assert (taken["message"], taken["worker"], taken["delay_ms"]) == ("job taken", WORKER, 1500)
    assert (again["message"], again["reason"]) == ("job queued again", "no ping")
    assert (ended["message"], ended["status"]) == ("job ended", FAILED)
    assert (ended["execution_ms"], ended["error"]) == (250, "bad")
