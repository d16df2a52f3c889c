"""Stores jobs in one SQLite file as `store.JobStore` promises, and decides nothing.

A job's record is JSON text; further columns are there to find and to order jobs.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from runpod_emulator.file_lock import locked
from runpod_emulator.jobs.job import Event, Job, JobStatus, Policy, Webhook
from runpod_emulator.jobs.store import UNCHANGED, Backlog, StoreUnusable, Tally, Unchanged

SCHEMA_VERSION = 2
"""Version that is increased with every change of the tables or of the fields of a `Job`."""

_SCHEMA = (
    # `sequence` is the order of submission: SQLite gives a new row one more than the largest
    """
    CREATE TABLE jobs (
        sequence INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        endpoint_id TEXT NOT NULL,
        status TEXT NOT NULL,
        is_low_priority INTEGER NOT NULL,
        is_hidden INTEGER NOT NULL,
        queued_at REAL NOT NULL,
        due_at REAL,
        webhook_at REAL,
        retries INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        record TEXT NOT NULL
    )
    """,
    "CREATE INDEX jobs_by_age ON jobs (endpoint_id, sequence)",
    # the columns after `sequence` let jobs be counted without reading their rows
    """
    CREATE INDEX jobs_by_status
    ON jobs (endpoint_id, status, sequence, is_hidden, is_low_priority, queued_at)
    """,
    "CREATE INDEX jobs_due ON jobs (due_at) WHERE due_at IS NOT NULL",
    "CREATE INDEX jobs_webhook ON jobs (webhook_at) WHERE webhook_at IS NOT NULL",
    """
    CREATE TABLE payloads (
        job INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
        body BLOB NOT NULL
    )
    """,
    """
    CREATE TABLE outputs (
        job INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
        body BLOB NOT NULL
    )
    """,
    """
    CREATE TABLE chunks (
        position INTEGER PRIMARY KEY,
        job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
        body BLOB NOT NULL
    )
    """,
    "CREATE INDEX chunks_by_job ON chunks (job, position)",
    """
    CREATE TABLE tallies (
        endpoint_id TEXT PRIMARY KEY,
        completed INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        retried INTEGER NOT NULL
    )
    """,
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA foreign_keys = ON",
    # overwrites deleted data where that costs no extra write: not the pages of large payloads
    "PRAGMA secure_delete = FAST",
)

_BUSY_TIMEOUT_S = 5.0

_ADD = """
    INSERT INTO jobs (
        id, endpoint_id, status, is_low_priority, is_hidden,
        queued_at, due_at, webhook_at, retries, revision, record
    ) VALUES (
        :id, :endpoint_id, :status, :is_low_priority, :is_hidden,
        :queued_at, :due_at, :webhook_at, :retries, :revision, :record
    )
"""
_REPLACE = """
    UPDATE jobs SET
        status = :status, is_low_priority = :is_low_priority, is_hidden = :is_hidden,
        queued_at = :queued_at, due_at = :due_at, webhook_at = :webhook_at,
        retries = :retries, revision = revision + 1, record = :record
    WHERE sequence = :sequence
"""
_STORED = "SELECT sequence, status, retries FROM jobs WHERE id = ? AND revision = ?"
_SET_OUTPUT = """
    INSERT INTO outputs (job, body) VALUES (?, ?)
    ON CONFLICT (job) DO UPDATE SET body = excluded.body
"""
_COUNT_UP = """
    INSERT INTO tallies (endpoint_id, completed, failed, retried) VALUES (?, ?, ?, ?)
    ON CONFLICT (endpoint_id) DO UPDATE SET
        completed = completed + excluded.completed,
        failed = failed + excluded.failed,
        retried = retried + excluded.retried
"""
_IN_STATUS = """
    SELECT record, revision FROM jobs WHERE endpoint_id = ? AND status = ? AND NOT is_hidden
    ORDER BY sequence LIMIT ?
"""
_RECENT = """
    SELECT record, revision FROM jobs WHERE endpoint_id = ? AND NOT is_hidden
    ORDER BY sequence DESC LIMIT ?
"""
_DUE = "SELECT record, revision FROM jobs WHERE due_at <= ? ORDER BY due_at, sequence LIMIT ?"
_WEBHOOKS_DUE = """
    SELECT record, revision FROM jobs WHERE webhook_at <= ? ORDER BY webhook_at, sequence LIMIT ?
"""
_BACKLOG = """
    SELECT count(*), min(queued_at) FROM jobs
    WHERE endpoint_id = ? AND status = 'IN_QUEUE' AND NOT is_hidden AND NOT is_low_priority
"""
_NUM_QUEUED = """
    SELECT count(*) FROM jobs WHERE endpoint_id = ? AND status = 'IN_QUEUE' AND NOT is_hidden
"""
_COUNTS = """
    SELECT status, count(*) FROM jobs WHERE endpoint_id = ? AND NOT is_hidden GROUP BY status
"""
_PAYLOAD = "SELECT body FROM payloads JOIN jobs ON sequence = job WHERE id = ?"
_OUTPUT = "SELECT body FROM outputs JOIN jobs ON sequence = job WHERE id = ?"
_ADD_CHUNK = "INSERT INTO chunks (job, body) SELECT sequence, ? FROM jobs WHERE id = ?"
_CHUNKS = "SELECT body FROM chunks JOIN jobs ON sequence = job WHERE id = ? ORDER BY position"
_CLEAR_CHUNKS = "DELETE FROM chunks WHERE job = (SELECT sequence FROM jobs WHERE id = ?)"

_NO_LIMIT = -1


class SqliteStore:
    """A `JobStore` on one file that this process alone may use while the store is open.

    Data that a method has written survives the end of the process, SIGKILL included. A power loss
    may lose the last transactions, never the file's consistency (WAL, `synchronous=NORMAL`).

    The methods run on the event loop and await nothing: a write of a small job takes about 0.1
    ms. Hidden jobs are found by `get` and for their webhooks only. `due_at` is the time at which a
    job changes; it is computed again for every job when the store opens, as rules may have changed.
    """

    def __init__(self, path: Path, due_at: Callable[[Job], float | None]) -> None:
        self._path = path
        self._due_at = due_at
        with ExitStack() as resources:
            resources.enter_context(_locked(path))
            self._db = resources.enter_context(_connected(path))
            self._set_up()
            self._resources = resources.pop_all()

    def _set_up(self) -> None:
        is_new = self._is_new()
        for pragma in _PRAGMAS:
            self._read(pragma)
        with self._transaction():
            for statement in _SCHEMA if is_new else ():
                self._db.execute(statement)
            self._plan_anew()

    def _is_new(self) -> bool:
        ((num_objects,),) = self._read("SELECT count(*) FROM sqlite_schema")
        ((version,),) = self._read("PRAGMA user_version")
        if num_objects and version != SCHEMA_VERSION:
            raise StoreUnusable(
                f"database {self._path}: expected schema version {SCHEMA_VERSION}, got {version}; "
                "delete the file or name another"
            )
        return not num_objects

    def _plan_anew(self) -> None:
        rows = self._db.execute("SELECT record, revision, sequence FROM jobs").fetchall()
        self._db.executemany(
            "UPDATE jobs SET due_at = ?1 WHERE sequence = ?2 AND due_at IS NOT ?1",
            [(self._due_at(_decode(*record)), sequence) for *record, sequence in rows],
        )

    async def add(self, job: Job, payload: bytes) -> None:
        with self._transaction():
            sequence = self._db.execute(_ADD, self._row(job)).lastrowid
            self._db.execute("INSERT INTO payloads (job, body) VALUES (?, ?)", (sequence, payload))

    async def get(self, job_id: str) -> Job | None:
        rows = self._read("SELECT record, revision FROM jobs WHERE id = ?", job_id)
        return _decode(*rows[0]) if rows else None

    async def replace(self, job: Job, *, output: bytes | Unchanged | None = UNCHANGED) -> bool:
        with self._transaction():
            stored = self._db.execute(_STORED, (job.id, job.revision)).fetchone()
            if stored is None:
                return False
            sequence, status, retries = stored
            self._db.execute(_REPLACE, self._row(job) | {"sequence": sequence})
            if output is None:
                self._db.execute("DELETE FROM outputs WHERE job = ?", (sequence,))
            elif not isinstance(output, Unchanged):
                self._db.execute(_SET_OUTPUT, (sequence, output))
            self._count_up(job, JobStatus(status), retries)
            return True

    def _count_up(self, job: Job, status_before: JobStatus, retries_before: int) -> None:
        reached = job.status if job.status is not status_before else None
        completed = reached is JobStatus.COMPLETED
        failed = reached is JobStatus.FAILED
        retried = max(0, job.retries - retries_before)
        if completed or failed or retried:
            self._db.execute(_COUNT_UP, (job.endpoint_id, completed, failed, retried))

    async def remove(self, job: Job) -> bool:
        with self._transaction():
            removed = self._db.execute(
                "DELETE FROM jobs WHERE id = ? AND revision = ?", (job.id, job.revision)
            )
            return removed.rowcount == 1

    async def payload(self, job_id: str) -> bytes | None:
        return self._body(_PAYLOAD, job_id)

    async def output(self, job_id: str) -> bytes | None:
        return self._body(_OUTPUT, job_id)

    async def queued(self, endpoint_id: str, limit: int) -> Sequence[Job]:
        return self._jobs(_IN_STATUS, endpoint_id, JobStatus.IN_QUEUE, limit)

    async def in_progress(self, endpoint_id: str) -> Sequence[Job]:
        return self._jobs(_IN_STATUS, endpoint_id, JobStatus.IN_PROGRESS, _NO_LIMIT)

    async def recent(self, endpoint_id: str, limit: int) -> Sequence[Job]:
        return self._jobs(_RECENT, endpoint_id, limit)

    async def due(self, now: float, limit: int) -> Sequence[Job]:
        return self._jobs(_DUE, now, limit)

    async def webhooks_due(self, now: float, limit: int) -> Sequence[Job]:
        return self._jobs(_WEBHOOKS_DUE, now, limit)

    async def backlog(self, endpoint_id: str) -> Backlog:
        ((waiting, oldest_queued_at),) = self._read(_BACKLOG, endpoint_id)
        return Backlog(waiting=waiting, oldest_queued_at=oldest_queued_at)

    async def num_queued(self, endpoint_id: str) -> int:
        ((num_queued,),) = self._read(_NUM_QUEUED, endpoint_id)
        return int(num_queued)

    async def counts(self, endpoint_id: str) -> Mapping[JobStatus, int]:
        return dict.fromkeys(JobStatus, 0) | {
            JobStatus(status): count for status, count in self._read(_COUNTS, endpoint_id)
        }

    async def tally(self, endpoint_id: str) -> Tally:
        rows = self._read(
            "SELECT completed, failed, retried FROM tallies WHERE endpoint_id = ?", endpoint_id
        )
        if not rows:
            return Tally()
        completed, failed, retried = rows[0]
        return Tally(completed=completed, failed=failed, retried=retried)

    async def add_chunk(self, job_id: str, chunk: bytes) -> None:
        with self._transaction():
            self._db.execute(_ADD_CHUNK, (chunk, job_id))

    async def pop_chunks(self, job_id: str) -> Sequence[bytes]:
        with self._transaction():
            chunks = [body for (body,) in self._db.execute(_CHUNKS, (job_id,))]
            self._db.execute(_CLEAR_CHUNKS, (job_id,))
            return chunks

    async def clear_chunks(self, job_id: str) -> None:
        with self._transaction():
            self._db.execute(_CLEAR_CHUNKS, (job_id,))

    async def close(self) -> None:
        with _unusable(self._path):
            self._resources.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _unusable(self._path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    def _read(self, sql: str, *values: str | float) -> list[tuple[Any, ...]]:
        """Read rows. Any: values of SQLite; the columns' types are in the schema."""
        with _unusable(self._path):
            return self._db.execute(sql, values).fetchall()

    def _jobs(self, sql: str, *values: str | float) -> list[Job]:
        return [_decode(*row) for row in self._read(sql, *values)]

    def _body(self, sql: str, job_id: str) -> bytes | None:
        rows = self._read(sql, job_id)
        return bytes(rows[0][0]) if rows else None

    def _row(self, job: Job) -> dict[str, str | float | None]:
        return {
            "id": job.id,
            "endpoint_id": job.endpoint_id,
            "status": job.status,
            "is_low_priority": job.policy.is_low_priority,
            "is_hidden": job.is_hidden,
            "queued_at": job.queued_at,
            "due_at": self._due_at(job),
            "webhook_at": job.webhook.next_at if job.webhook else None,
            "retries": job.retries,
            "revision": job.revision,
            "record": _encode(job),
        }


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = path.with_name(f"{path.name}.lock")
    with _unusable(path), ExitStack() as stack:
        try:
            stack.enter_context(locked(lock))
        except BlockingIOError as exc:
            raise StoreUnusable(
                f"database {path}: expected no other user, got a process that holds {lock.name}; "
                "stop the emulator that uses it, or name another database"
            ) from exc
        yield


@contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    """Connect in autocommit mode, so that transactions are the ones written out in this module."""
    with _unusable(path):
        # SQLite gives its -wal and -shm files the permissions of the database
        path.touch(mode=0o600)
        db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        with closing(db):
            yield db


@contextmanager
def _unusable(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as exc:
        raise StoreUnusable(f"database {path}: {exc}") from exc


def _encode(job: Job) -> str:
    """Return the job as JSON, except its revision, which is a column."""
    fields = _fields(job)
    del fields["revision"]
    return json.dumps(fields, default=_fields, separators=(",", ":"))


def _fields(value: Job | Policy | Webhook | Event) -> dict[str, object]:
    """Return the fields of a dataclass, which are its slots."""
    return {name: getattr(value, name) for name in value.__slots__}


def _decode(record: str, revision: int) -> Job:
    fields = json.loads(record)
    webhook = fields["webhook"]
    fields |= {
        "status": JobStatus(fields["status"]),
        "policy": Policy(**fields["policy"]),
        "webhook": Webhook(**webhook) if webhook else None,
        "history": tuple(
            Event(**event | {"status": JobStatus(event["status"])}) for event in fields["history"]
        ),
    }
    return Job(**fields, revision=revision)
