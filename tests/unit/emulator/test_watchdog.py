"""Who must go and which job is lost: one table of facts, times and verdicts."""

from dataclasses import replace
from typing import Any

import pytest

from runpod_emulator.behaviour import Behaviour, Unlisted
from runpod_emulator.hazards import HazardKind
from runpod_emulator.settings import EndpointSettings
from runpod_emulator.workers.session import WorkerSession
from runpod_emulator.workers.state import WorkerState
from runpod_emulator.workers.watchdog import ForgetJob, Kill, LoseJob, verdicts

STARTED_AT = 1000.0
READY_AT = 1200.0
PROCESS: Any = object()
"""Whether there is one is all that matters here."""

BEHAVIOUR = Behaviour(heartbeat_timeout_s=30.0, stop_grace_s=5.0)
ENDPOINT = EndpointSettings(id="ep", command=(), init_timeout_s=420.0)
SLOW_ENDPOINT = replace(ENDPOINT, env={"RUNPOD_INIT_TIMEOUT": "800"})

NO_PING = Kill("no ping for 30 s")
SLOW = Kill("not ready after 420 s", hazard=HazardKind.SLOW_START)
TOO_SLOW = Kill("not ready after 800 s", hazard=HazardKind.SLOW_START)
OVERSTAYED = Kill("did not end in time after SIGTERM", is_blamed=False)
BLOCKED = Kill(
    "job a did not react to job-stop",
    hazard=HazardKind.BLOCKED_HANDLER,
    job_id="a",
    is_blamed=False,
)
LOST = LoseJob("a", "not in the worker's pings for 30 s")


def started():
    worker = WorkerSession(STARTED_AT)
    worker.started(PROCESS, STARTED_AT)
    return worker


def ready(*job_ids, pings=()):
    """Polled for the first time at READY_AT; `pings` are pairs of a time and the listed ids."""
    worker = started()
    worker.polled(has_jobs=False, now=READY_AT)
    for job_id in job_ids:
        worker.took(job_id, READY_AT)
    for at, listed in pings:
        worker.pinged(listed, at)
    return worker


def waiting():
    return WorkerSession(STARTED_AT)


def pinging_but_never_ready():
    worker = started()
    worker.pinged((), STARTED_AT + 415)
    return worker


def draining():
    worker = ready(pings=[(READY_AT, "")])
    worker.drain("idle", READY_AT + 100)
    return worker


def unfit(*, pinged):
    worker = started()
    worker.state = WorkerState.UNHEALTHY
    if pinged:
        worker.pinged((), STARTED_AT + 10)
    return worker


def ended():
    worker = ready(pings=[(READY_AT, "")])
    worker.ended(READY_AT + 1)
    return worker


def stopping(*later_pings):
    """Job a was to be stopped ten seconds after READY_AT, and was listed until then."""
    worker = ready("a", pings=[(READY_AT + 9, {"a"})])
    worker.request_stop("a", READY_AT + 10)
    for at, listed in later_pings:
        worker.pinged(listed, READY_AT + at)
    return worker


def release():
    worker = ready("a", pings=[(READY_AT, {"a"})])
    worker.polled(has_jobs=False, now=READY_AT)
    worker.pinged((), READY_AT + 20)
    return worker


CASES = {
    "waits for a GPU": (waiting, 1e6, []),
    "has ended": (ended, 1e6, []),
    "starts": (started, STARTED_AT + 419.9, []),
    "starts for too long": (started, STARTED_AT + 420, [SLOW]),
    "pings but never polls": (pinging_but_never_ready, STARTED_AT + 420, [SLOW]),
    "has polled and not pinged yet": (ready, READY_AT + 29.9, []),
    "has never pinged": (ready, READY_AT + 30, [NO_PING]),
    "pinged lately": (lambda: ready(pings=[(READY_AT + 9, "")]), READY_AT + 38.9, []),
    "is silent": (lambda: ready(pings=[(READY_AT + 9, "")]), READY_AT + 39, [NO_PING]),
    "is silent with a job": (lambda: ready("a", pings=[(1200.0, "")]), READY_AT + 30, [NO_PING]),
    "is unfit and gone": (lambda: unfit(pinged=False), STARTED_AT + 30, [NO_PING]),
    "was unfit a moment ago": (lambda: unfit(pinged=True), STARTED_AT + 39.9, []),
    "has told that it is unfit": (lambda: unfit(pinged=True), STARTED_AT + 40, [NO_PING]),
    "drains in silence": (draining, READY_AT + 99.9, []),
    "drains for too long": (draining, READY_AT + 100, [OVERSTAYED]),
    "lists its job": (
        lambda: ready("a", pings=[(READY_AT, ""), (READY_AT + 20, {"a"})]),
        READY_AT + 49.9,
        [],
    ),
    "has not listed its job for a while": (
        lambda: ready("a", pings=[(READY_AT, ""), (READY_AT + 20, "")]),
        READY_AT + 29.9,
        [],
    ),
    "has not listed its job for long": (
        lambda: ready("a", pings=[(READY_AT, ""), (READY_AT + 20, "")]),
        READY_AT + 30,
        [LOST],
    ),
    "lists one job of two": (
        lambda: ready("a", "b", pings=[(READY_AT, {"b"}), (READY_AT + 20, {"b"})]),
        READY_AT + 30,
        [LOST],
    ),
    "has let go of its job": (release, READY_AT + 29.9, []),
    "has let go of its job for good": (release, READY_AT + 30, [LOST]),
    "is asked to stop": (stopping, READY_AT + 15, []),
    "is asked to stop and has not pinged since": (stopping, READY_AT + 38, []),
    "may still be stopping": (lambda: stopping((15, {"a"})), READY_AT + 16, []),
    "ignores the stop": (lambda: stopping((15.1, {"a"})), READY_AT + 16, [BLOCKED]),
    "has stopped": (lambda: stopping((11, "")), READY_AT + 11, [ForgetJob("a")]),
    "has stopped late": (
        lambda: stopping((14, {"a"}), (24, "")),
        READY_AT + 24,
        [ForgetJob("a")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_worker_gets_the_verdict_that_it_deserves(name):
    make, now, expected = CASES[name]
    assert list(verdicts(make(), ENDPOINT, BEHAVIOUR, now)) == expected


@pytest.mark.parametrize(("after_s", "expected"), [(420.0, []), (800.0, [TOO_SLOW])])
def test_workers_own_variable_says_how_long_it_may_start(after_s, expected):
    assert list(verdicts(started(), SLOW_ENDPOINT, BEHAVIOUR, STARTED_AT + after_s)) == expected


def test_unlisted_job_may_be_left_to_hang():
    behaviour = replace(BEHAVIOUR, unlisted_job=Unlisted.HANG)
    worker = ready("a", pings=[(READY_AT, ""), (READY_AT + 1000, "")])
    assert list(verdicts(worker, ENDPOINT, behaviour, READY_AT + 1001)) == []
    worker.request_stop("a", READY_AT + 1001)
    assert list(verdicts(worker, ENDPOINT, behaviour, READY_AT + 1001)) == [ForgetJob("a")]


def test_worker_that_ignores_a_stop_may_be_left_alone():
    behaviour = replace(BEHAVIOUR, kill_if_not_stopped=False)
    worker = stopping((24, {"a"}))
    assert list(verdicts(worker, ENDPOINT, BEHAVIOUR, READY_AT + 24)) == [BLOCKED]
    assert list(verdicts(worker, ENDPOINT, behaviour, READY_AT + 24)) == []
