"""The store on SQLite keeps what it was given, in order, whatever ends the process."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.jobs import (
    BEHAVIOUR,
    CREATED_AT,
    ENDED_AT,
    WORKER,
    answer,
    make_job,
    make_job_in,
    make_policy,
    make_webhook,
)

from runpod_emulator.jobs import lifecycle
from runpod_emulator.jobs.job import Event, Job, JobStatus, Policy, Webhook
from runpod_emulator.jobs.sqlite_store import SCHEMA_VERSION, SqliteStore
from runpod_emulator.jobs.store import UNCHANGED, Backlog, StoreUnusable, Tally

SRC = Path(__file__).resolve().parents[3] / "src"
PAYLOAD = b'{"prompt": "a red circle"}'
OUTPUT = b'{"images": []}'
LATER = ENDED_AT + 10


class Desk(NamedTuple):
    """A store that is called without `await`: `desk.add(job, payload)`."""

    store: SqliteStore

    def __getattr__(self, name):
        method = getattr(self.store, name)
        return lambda *args, **kwargs: answer(method(*args, **kwargs))

    def keep(self, *jobs):
        """Add jobs with a payload, whatever their status."""
        for job in jobs:
            self.add(job, PAYLOAD)

    def change(self, job, **changes):
        """Store these fields of a job that is kept, and return it as it is stored then."""
        assert self.replace(replace(self.get(job.id), **changes))
        return self.get(job.id)


def open_desk(path, due_at=lambda job: lifecycle.due_at(job, BEHAVIOUR)):
    return Desk(SqliteStore(path, due_at))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs.db"


@pytest.fixture
def desk(path):
    desk = open_desk(path)
    yield desk
    desk.close()


@pytest.fixture(scope="module")
def lasting_desk(tmp_path_factory):
    """One store for all examples of a property."""
    desk = open_desk(tmp_path_factory.mktemp("store") / "jobs.db")
    yield desk
    desk.close()


def ids(jobs):
    return [job.id for job in jobs]


# what is kept

TIMES = st.floats(allow_nan=False)
COUNTS = st.integers(0, 2**40)
WORDS = st.text(max_size=20)
ANY_TEXT = st.text(st.characters(), max_size=20)  # surrogates included: errors are workers' texts
JOBS = st.builds(
    Job,
    id=st.sampled_from(["job-1", "Ünï\x00"]),
    endpoint_id=WORDS,
    is_sync=st.booleans(),
    policy=st.builds(Policy, execution_timeout_s=TIMES, ttl_s=TIMES, is_low_priority=st.booleans()),
    created_at=TIMES,
    status=st.sampled_from(JobStatus),
    queued_at=TIMES,
    started_at=st.none() | TIMES,
    finished_at=st.none() | TIMES,
    worker_id=st.none() | WORDS,
    retries=COUNTS,
    executions=COUNTS,
    error=st.none() | ANY_TEXT,
    webhook=st.none()
    | st.builds(
        Webhook,
        url=ANY_TEXT,
        attempts=COUNTS,
        next_at=st.none() | TIMES,
        delivered_at=st.none() | TIMES,
        failure=st.none() | ANY_TEXT,
    ),
    s3_config=st.none() | WORDS,
    is_s3_config_deleted=st.booleans(),
    is_hidden=st.booleans(),
    history=st.lists(
        st.builds(
            Event,
            at=TIMES,
            status=st.sampled_from(JobStatus),
            reason=ANY_TEXT,
            worker_id=st.none() | WORDS,
        ),
        max_size=3,
    ).map(tuple),
    revision=COUNTS,
)


@settings(max_examples=60, deadline=None)
@given(first=JOBS, second=JOBS, payload=st.binary(), output=st.none() | st.binary())
def test_job_comes_back_as_it_was_given(lasting_desk, first, second, payload, output):
    desk = lasting_desk
    second = replace(second, id=first.id, endpoint_id=first.endpoint_id, revision=first.revision)
    desk.add(first, payload)
    assert desk.get(first.id) == first
    assert desk.replace(second, output=output)
    stored = replace(second, revision=first.revision + 1)
    assert desk.get(first.id) == stored
    assert (desk.payload(first.id), desk.output(first.id)) == (payload, output)
    assert desk.remove(stored)
    assert (desk.get(first.id), desk.payload(first.id), desk.output(first.id)) == (None,) * 3


def test_parts_come_back_as_their_types(desk):
    given = make_job_in(JobStatus.COMPLETED, webhook=make_webhook())
    desk.keep(given)
    job = desk.get(given.id)
    assert type(job.status) is JobStatus
    assert (type(job.policy), type(job.webhook), type(job.history)) == (Policy, Webhook, tuple)
    assert {(type(event), type(event.status)) for event in job.history} == {(Event, JobStatus)}


def test_large_bodies_come_back_unchanged(desk):
    large = bytes(range(256)) * 80_000
    job = make_job()
    desk.keep(job)
    assert desk.replace(job, output=large)
    assert desk.output(job.id) == large


def test_unknown_job_has_nothing(desk):
    assert desk.get("nobody") is None
    assert desk.payload("nobody") is None
    assert desk.output("nobody") is None
    assert desk.pop_chunks("nobody") == []
    assert not desk.replace(make_job(id="nobody"), output=OUTPUT)
    assert not desk.remove(make_job(id="nobody"))


def test_job_is_added_once_or_not_at_all(desk):
    desk.keep(make_job())
    with pytest.raises(StoreUnusable, match=r"jobs\.id"):
        desk.add(make_job(endpoint_id="other"), b"other")
    assert (desk.get("job-1"), desk.payload("job-1")) == (make_job(), PAYLOAD)
    with pytest.raises(StoreUnusable, match=r"payloads\.body"):
        desk.add(make_job(id="without payload"), None)
    assert desk.get("without payload") is None


# compare and swap


def test_output_changes_only_when_it_is_given(desk):
    desk.keep(make_job())
    for output, expected in ((OUTPUT, OUTPUT), (UNCHANGED, OUTPUT), (b"2", b"2"), (None, None)):
        assert desk.replace(desk.get("job-1"), output=output)
        assert desk.output("job-1") == expected


def test_revision_counts_every_change(desk):
    desk.keep(make_job())
    for revision in range(3):
        assert desk.get("job-1").revision == revision
        assert desk.replace(desk.get("job-1"))


@pytest.mark.parametrize("output", [UNCHANGED, None, b"late"])
def test_late_change_changes_nothing(desk, output):
    stale = make_job_in(JobStatus.IN_PROGRESS)
    desk.keep(stale)
    assert desk.replace(stale, output=OUTPUT)
    current = desk.get(stale.id)
    completed = lifecycle.complete(stale, WORKER, LATER, BEHAVIOUR)
    assert completed is not None
    assert not desk.replace(replace(completed, retries=1), output=output)
    assert not desk.remove(stale)
    assert desk.get(stale.id) == current
    assert (desk.payload(stale.id), desk.output(stale.id)) == (PAYLOAD, OUTPUT)
    assert desk.tally("ep") == Tally()


def test_of_two_takers_one_gets_the_job(desk):
    desk.keep(make_job())
    seen_by_both = desk.get("job-1")
    takes = [lifecycle.take(seen_by_both, worker, LATER) for worker in ("worker-1", "worker-2")]
    assert [desk.replace(taken) for taken in takes] == [True, False]
    assert desk.get("job-1").worker_id == "worker-1"


def test_removed_job_takes_all_that_belongs_to_it(desk, path):
    job = make_job()
    desk.keep(job, make_job(id="other"))
    desk.replace(job, output=OUTPUT)
    desk.add_chunk(job.id, b"1")
    assert desk.remove(desk.get(job.id))
    desk.close()
    with closing(sqlite3.connect(path)) as db:
        rows = {
            table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("jobs", "payloads", "outputs", "chunks")
        }
    assert rows == {"jobs": 1, "payloads": 1, "outputs": 0, "chunks": 0}


# tally


def test_tally_counts_what_became_of_jobs_and_survives_them(desk):
    desk.keep(make_job(id="a"), make_job(id="b"), make_job(id="elsewhere", endpoint_id="other"))
    done = desk.change(make_job(id="a"), status=JobStatus.COMPLETED)
    desk.change(make_job(id="b"), status=JobStatus.IN_PROGRESS, retries=1)
    desk.change(make_job(id="b"), status=JobStatus.FAILED, retries=2)
    desk.change(make_job(id="elsewhere"), status=JobStatus.FAILED)
    desk.remove(done)
    assert desk.tally("ep") == Tally(completed=1, failed=1, retried=2)
    assert desk.tally("other") == Tally(failed=1)
    assert desk.tally("nobody") == Tally()


def test_tally_counts_a_status_when_it_is_reached_and_not_when_it_stays(desk):
    desk.keep(make_job())
    for status in (JobStatus.FAILED, JobStatus.FAILED, JobStatus.IN_QUEUE, JobStatus.FAILED):
        desk.change(make_job(), status=status)
    assert desk.tally("ep") == Tally(failed=2)


@pytest.mark.parametrize("status", [JobStatus.CANCELLED, JobStatus.TIMED_OUT])
def test_tally_leaves_other_statuses_out(desk, status):
    desk.keep(make_job())
    desk.change(make_job(), status=status)
    assert desk.tally("ep") == Tally()


def test_retries_that_start_again_are_not_taken_off(desk):
    desk.keep(make_job())
    for retries in (1, 0, 1):
        desk.change(make_job(), retries=retries)
    assert desk.tally("ep") == Tally(retried=2)


# order


def test_requeued_job_keeps_its_place(desk):
    desk.keep(*(make_job(id=name) for name in "abc"))
    taken = lifecycle.take(desk.get("a"), WORKER, LATER)
    assert desk.replace(taken)
    assert ids(desk.queued("ep", 10)) == ["b", "c"]
    assert ids(desk.in_progress("ep")) == ["a"]
    assert desk.replace(lifecycle.give_back(desk.get("a"), WORKER, LATER + 1, "refused"))
    assert ids(desk.queued("ep", 10)) == ["a", "b", "c"]
    assert desk.in_progress("ep") == []


def test_order_is_that_of_submission_not_of_clocks_or_names(desk):
    times = {"b": 3.0, "c": 1.0, "a": 2.0}
    desk.keep(*(make_job(id=name, created_at=at) for name, at in times.items()))
    assert ids(desk.queued("ep", 10)) == ["b", "c", "a"]
    assert ids(desk.queued("ep", 2)) == ["b", "c"]
    assert ids(desk.recent("ep", 10)) == ["a", "c", "b"]
    assert ids(desk.recent("ep", 2)) == ["a", "c"]


def test_job_after_a_removed_one_is_still_the_newest(desk):
    desk.keep(make_job(id="a"), make_job(id="b"))
    desk.replace(desk.get("b"), output=OUTPUT)
    desk.remove(desk.get("b"))
    desk.keep(make_job(id="c"))
    assert ids(desk.queued("ep", 10)) == ["a", "c"]
    assert desk.output("c") is None


def test_endpoints_do_not_see_each_others_jobs(desk):
    desk.keep(make_job(), make_job_in(JobStatus.IN_PROGRESS, id="running"))
    assert desk.queued("other", 10) == desk.in_progress("other") == desk.recent("other", 10) == []
    assert desk.backlog("other") == Backlog(waiting=0, oldest_queued_at=None)
    assert set(desk.counts("other").values()) == {0}


@pytest.mark.parametrize("status", JobStatus)
def test_job_is_found_by_its_status(desk, status):
    desk.keep(make_job_in(status))
    assert len(desk.queued("ep", 10)) == (status is JobStatus.IN_QUEUE)
    assert len(desk.in_progress("ep")) == (status is JobStatus.IN_PROGRESS)
    assert len(desk.recent("ep", 10)) == 1
    assert desk.counts("ep") == dict.fromkeys(JobStatus, 0) | {status: 1}


# time


def test_due_jobs_come_earliest_first_once_their_time_has_come(path):
    due = {"a": 30.0, "b": 10.0, "c": None, "d": 20.0, "e": 10.0}
    desk = open_desk(path, due_at=lambda job: due[job.id])
    desk.keep(*(make_job(id=name) for name in due))
    assert ids(desk.due(9.9, 10)) == []
    assert ids(desk.due(20.0, 10)) == ["b", "e", "d"]
    assert ids(desk.due(99.0, 2)) == ["b", "e"]
    due["b"] = 25.0
    desk.change(make_job(id="b"))
    assert ids(desk.due(99.0, 10)) == ["e", "d", "b", "a"]
    desk.close()


def test_rules_of_time_that_changed_count_from_the_next_start(path):
    desk = open_desk(path, due_at=lambda job: 100.0)
    desk.keep(make_job())
    desk.close()
    desk = open_desk(path, due_at=lambda job: 50.0)
    assert ids(desk.due(60.0, 10)) == ["job-1"]
    assert desk.get("job-1") == make_job()
    desk.close()


def test_webhooks_come_earliest_first_once_their_time_has_come(desk):
    times = {"a": 30.0, "b": 10.0, "c": None, "d": 20.0}
    desk.keep(*(make_job(id=name, webhook=make_webhook(next_at=at)) for name, at in times.items()))
    desk.keep(make_job(id="e"))
    assert ids(desk.webhooks_due(9.9, 10)) == []
    assert ids(desk.webhooks_due(20.0, 10)) == ["b", "d"]
    assert ids(desk.webhooks_due(99.0, 1)) == ["b"]
    desk.change(make_job(id="b"), webhook=make_webhook(attempts=1, next_at=25.0))
    assert ids(desk.webhooks_due(99.0, 10)) == ["d", "b", "a"]
    desk.change(make_job(id="d"), webhook=make_webhook(attempts=1, delivered_at=21.0))


# scaling and hidden jobs


def test_backlog_is_jobs_that_wait_low_priority_left_out(desk):
    low = make_policy(is_low_priority=True)
    desk.keep(
        make_job(id="low", policy=low, created_at=CREATED_AT - 9),
        make_job(id="requeued", queued_at=CREATED_AT + 5),
        make_job(id="waits", queued_at=CREATED_AT + 3),
        make_job_in(JobStatus.IN_PROGRESS, id="running", created_at=CREATED_AT - 9),
        make_job_in(JobStatus.FAILED, id="ended", created_at=CREATED_AT - 9),
    )
    assert desk.backlog("ep") == Backlog(waiting=2, oldest_queued_at=CREATED_AT + 3)
    assert ids(desk.queued("ep", 10)) == ["low", "requeued", "waits"]


@pytest.mark.parametrize("status", JobStatus)
def test_hidden_job_is_kept_for_its_webhook_only(desk, status):
    hidden = replace(make_job_in(status), is_hidden=True, webhook=make_webhook(next_at=1.0))
    desk.keep(hidden)
    assert desk.get(hidden.id) == hidden
    assert desk.webhooks_due(LATER, 10) == [hidden]
    assert set(desk.counts("ep").values()) == {0}
    assert desk.backlog("ep") == Backlog(waiting=0, oldest_queued_at=None)
    assert desk.queued("ep", 10) == desk.in_progress("ep") == desk.recent("ep", 10) == []
    assert desk.due(1e12, 10) == []


# streams


def test_chunks_are_given_out_once_and_in_order(desk):
    desk.keep(make_job(), make_job(id="other"))
    chunks = [b"%d" % number for number in range(12)]
    for chunk in chunks:
        desk.add_chunk("job-1", chunk)
        desk.add_chunk("other", b"other")
    assert desk.pop_chunks("job-1") == chunks
    assert desk.pop_chunks("job-1") == []
    desk.add_chunk("job-1", b"late")
    assert desk.pop_chunks("job-1") == [b"late"]
    desk.clear_chunks("other")
    assert desk.pop_chunks("other") == []


def test_chunk_for_a_job_that_is_gone_is_dropped(desk):
    desk.add_chunk("job-1", b"late")
    desk.keep(make_job())
    assert desk.pop_chunks("job-1") == []


# the file


def test_closed_store_opens_again_with_all_it_had(path):
    desk = open_desk(path)
    desk.keep(make_job())
    desk.change(make_job(), status=JobStatus.COMPLETED)
    stored = desk.get("job-1")
    desk.replace(stored, output=OUTPUT)
    desk.add_chunk("job-1", b"1")
    desk.close()
    desk.close()
    with pytest.raises(StoreUnusable, match="closed"):
        desk.get("job-1")
    again = open_desk(path)
    assert again.get("job-1") == replace(stored, revision=stored.revision + 1)
    assert (again.payload("job-1"), again.output("job-1")) == (PAYLOAD, OUTPUT)
    assert again.pop_chunks("job-1") == [b"1"]
    assert again.tally("ep") == Tally(completed=1)
    again.close()


def test_files_are_their_owners_alone(desk, path):
    desk.keep(make_job())
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(
        ("jobs.db", "jobs.db-wal", "jobs.db-shm", "jobs.db.lock"), oct(0o600)
    )


def test_second_store_on_the_same_file_is_refused(desk, path):
    expected = r"jobs\.db: expected no other user.* name another database"
    with pytest.raises(StoreUnusable, match=expected):
        open_desk(path)
    desk.keep(make_job())
    desk.close()
    after = open_desk(path)
    assert after.get("job-1") == make_job()
    after.close()


def test_database_of_another_version_is_refused_and_left_alone(path):
    open_desk(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    for _ in range(2):
        with pytest.raises(StoreUnusable, match=r"jobs\.db: expected schema version 2, got 3"):
            open_desk(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    open_desk(path).close()


def test_somebody_elses_database_is_refused_and_left_alone(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE recipes (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match="expected schema version 2, got 0"):
        open_desk(path)
    assert path.read_bytes() == before


def test_file_that_is_no_database_is_refused_and_left_alone(path):
    path.write_bytes(b"dear diary" * 100)
    with pytest.raises(StoreUnusable, match=r"jobs\.db: .*not a database"):
        open_desk(path)
    assert path.read_bytes() == b"dear diary" * 100


def test_missing_directory_is_named(tmp_path):
    with pytest.raises(StoreUnusable, match="nowhere"):
        open_desk(tmp_path / "nowhere" / "jobs.db")


# abrupt ends


def test_files_of_a_store_that_was_never_closed_hold_every_job(desk, path, tmp_path):
    desk.keep(*(make_job(id=str(number)) for number in range(20)))
    copy = tmp_path / "copy" / path.name
    copy.parent.mkdir()
    for name in (path.name, f"{path.name}-wal"):
        shutil.copyfile(path.with_name(name), copy.with_name(name))
    recovered = open_desk(copy)
    assert ids(recovered.queued("ep", 100)) == [str(number) for number in range(20)]
    assert recovered.payload("19") == PAYLOAD
    recovered.close()


WRITER = """
import asyncio, sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from runpod_emulator.jobs.job import Job, JobStatus, Policy
from runpod_emulator.jobs.sqlite_store import SqliteStore

async def write(store):
    for number in count():
        policy = Policy(execution_timeout_s=1, ttl_s=1)
        job = Job(id=str(number), endpoint_id="ep", is_sync=False, policy=policy,
                  created_at=number, queued_at=number)
        await store.add(job, b"payload of %d" % number)
        print("added", number, flush=True)
        await store.replace(replace(job, status=JobStatus.COMPLETED), output=b"%d" % number)
        print("ended", number, flush=True)

asyncio.run(write(SqliteStore(Path(sys.argv[1]), lambda job: None)))
"""


def test_what_was_written_survives_sigkill_and_the_lock_does_not(path):
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path],
        env={"PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(101)]
        with pytest.raises(StoreUnusable, match="expected no other user"):
            open_desk(path)
        writer.kill()
        lines += writer.stdout
    words = [line.split() for line in lines if line.endswith("\n")]
    added = [number for word, number in words if word == "added"]
    ended = [number for word, number in words if word == "ended"]
    assert len(added) >= 50 and added == [str(number) for number, _ in zip(count(), added)]
    desk = open_desk(path)
    for number in added:
        assert desk.payload(number) == b"payload of %s" % number.encode()
    for number in ended:
        assert desk.get(number).status is JobStatus.COMPLETED
        assert desk.output(number) == number.encode()
    kept = desk.recent("ep", len(added) + 2)
    assert len(kept) - len(added) in (0, 1)  # at most the one that was being added
    assert 0 <= desk.tally("ep").completed - len(ended) <= 1
    assert all(
        (job.status is JobStatus.COMPLETED) == (desk.output(job.id) is not None) for job in kept
    )
    desk.close()
