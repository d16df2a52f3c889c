"""What the platform knows of a worker after each of its calls."""

import asyncio
from typing import Any

import pytest

from runpod_emulator.workers.session import SETTLE_S, WorkerSession
from runpod_emulator.workers.state import WorkerState

INITIALIZING = WorkerState.INITIALIZING
IDLE = WorkerState.IDLE
RUNNING = WorkerState.RUNNING
THROTTLED = WorkerState.THROTTLED
UNHEALTHY = WorkerState.UNHEALTHY
DRAINING = WorkerState.DRAINING
STOPPED = WorkerState.STOPPED

STARTED_AT = 1000.0
READY_AT = 1060.0
NOW = 1100.0
PROCESS: Any = object()
"""A session keeps its process for others and never looks into it."""


def started_worker(**arguments):
    worker = WorkerSession(STARTED_AT - 5, **arguments)
    worker.started(PROCESS, STARTED_AT)
    return worker


def ready_worker(*job_ids, **arguments):
    worker = started_worker(**arguments)
    worker.polled(has_jobs=False, now=READY_AT)
    for job_id in job_ids:
        worker.took(job_id, READY_AT)
    return worker


def test_worker_waits_for_a_gpu_at_no_cost_until_it_is_started():
    worker = WorkerSession(STARTED_AT, usd_per_second=0.5)
    assert (worker.state, worker.process, worker.cost_usd(NOW)) == (THROTTLED, None, 0.0)
    worker.started(PROCESS, NOW)
    assert (worker.state, worker.process, worker.cost_usd(NOW + 10)) == (INITIALIZING, PROCESS, 5.0)


def test_every_worker_has_an_id_and_a_token_of_its_own():
    first, second = WorkerSession(NOW), WorkerSession(NOW)
    assert first.id != second.id
    assert first.token != second.token
    assert len(first.token) >= 32


def test_worker_is_ready_with_its_first_poll_and_not_with_a_ping():
    worker = started_worker()
    worker.pinged((), STARTED_AT + 1)
    assert (worker.state, worker.idle_since, worker.ready_at) == (INITIALIZING, None, None)
    worker.polled(has_jobs=False, now=READY_AT)
    worker.polled(has_jobs=False, now=NOW)
    assert (worker.state, worker.idle_since, worker.ready_at) == (IDLE, READY_AT, READY_AT)
    bill = worker.meter.bill(NOW)
    assert (bill.start_s, bill.run_s, bill.idle_s) == (60.0, 0.0, 40.0)


def test_worker_is_idle_again_with_the_last_of_its_jobs():
    worker = ready_worker("a", "b")
    assert (worker.state, worker.idle_since) == (RUNNING, None)
    assert worker.release("a", NOW)
    assert (worker.state, worker.idle_since) == (RUNNING, None)
    assert worker.release("b", NOW + 10)
    assert (worker.state, worker.idle_since, worker.jobs) == (IDLE, NOW + 10, {})
    bill = worker.meter.bill(NOW + 15)
    assert (bill.run_s, bill.idle_s) == (50.0, 5.0)


def test_job_that_it_does_not_hold_cannot_be_let_go():
    worker = ready_worker()
    assert not worker.release("unknown", NOW)
    assert worker.idle_since == READY_AT


@pytest.mark.parametrize("state", [UNHEALTHY, DRAINING, STOPPED])
def test_worker_that_is_to_end_becomes_neither_idle_nor_running(state):
    worker = ready_worker("a")
    worker.state = state
    worker.polled(has_jobs=True, now=NOW)
    worker.took("b", NOW)
    worker.release("a", NOW)
    worker.release("b", NOW)
    assert worker.state is state
    assert not worker.state.can_take


CAN_TAKE = {INITIALIZING, IDLE, RUNNING}
IS_WANTED = set(WorkerState) - {DRAINING, STOPPED}


def test_state_says_what_it_allows():
    assert {state for state in WorkerState if state.can_take} == CAN_TAKE
    assert {state for state in WorkerState if state.is_wanted} == IS_WANTED


# what it says of its jobs


def test_poll_without_jobs_tells_of_those_it_has_let_go_of_and_does_so_once():
    worker = ready_worker("a", "b")
    assert worker.polled(has_jobs=True, now=NOW) == []
    assert worker.polled(has_jobs=False, now=NOW) == ["a", "b"]
    assert worker.polled(has_jobs=False, now=NOW + 5) == []
    worker.took("c", NOW + 6)
    assert worker.polled(has_jobs=False, now=NOW + 7) == ["c"]
    assert [held.is_dropped for held in worker.jobs.values()] == [True, True, True]
    assert [held.unlisted_since for held in worker.jobs.values()] == [NOW, NOW, NOW + 7]


@pytest.mark.parametrize(
    ("pings", "unlisted_since"),
    [
        ([{"a"}], None),
        ([{"a", "b"}], None),
        ([set()], NOW),
        ([{"b"}, set()], NOW),
        ([set(), {"a"}], None),
        ([set(), {"a"}, {""}], NOW + 2),
    ],
)
def test_job_counts_as_unlisted_since_the_first_ping_without_it(pings, unlisted_since):
    worker = ready_worker("a")
    for number, listed in enumerate(pings):
        worker.pinged(listed, NOW + number)
    assert worker.jobs["a"].unlisted_since == unlisted_since
    assert worker.last_ping_at == NOW + len(pings) - 1


# what it is told


def test_stop_is_requested_once_and_only_for_jobs_of_the_worker():
    worker = ready_worker("a", "b")
    worker.request_stop("unknown", NOW)
    assert worker.stops == []
    worker.request_stop("b", NOW)
    worker.request_stop("a", NOW + 1)
    worker.request_stop("b", NOW + 2)
    assert worker.pop_stops(NOW) == ["b", "a"]
    assert worker.pop_stops(NOW) == []
    worker.request_stop("b", NOW + 3)
    assert worker.pop_stops(NOW) == []
    assert (worker.jobs["b"].stop_requested_at, worker.jobs["a"].stop_requested_at) == (
        NOW,
        NOW + 1,
    )


def test_stop_waits_until_the_sdk_has_begun_with_its_job():
    worker = ready_worker("a")
    worker.took("b", NOW)
    for job_id in ("b", "a"):
        worker.request_stop(job_id, NOW)
    assert worker.pop_stops(NOW + SETTLE_S - 0.01) == ["a"]
    assert worker.stops == ["b"]
    assert worker.pop_stops(NOW + SETTLE_S) == ["b"]


WAKING = {
    "stop": lambda worker: worker.request_stop("a", NOW),
    "drain": lambda worker: worker.drain("idle", NOW + 30),
}


@pytest.mark.parametrize("event", WAKING)
def test_held_poll_is_woken(event):
    async def scenario():
        worker = ready_worker("a")
        poll = asyncio.create_task(worker.wake.wait(1e6))
        await asyncio.sleep(0)
        WAKING[event](worker)
        await asyncio.wait_for(poll, 10)

    asyncio.run(scenario())


def test_drained_worker_has_a_reason_and_a_last_moment():
    worker = ready_worker("a")
    worker.drain("idle", NOW + 30)
    assert (worker.state, worker.reason, worker.kill_at) == (DRAINING, "idle", NOW + 30)
    assert worker.is_end_requested
    assert list(worker.jobs) == ["a"]


# what it costs


def test_bill_is_closed_when_the_process_is_gone():
    worker = ready_worker("a", usd_per_second=0.25)
    worker.ended(NOW)
    assert (worker.process, worker.idle_since) == (None, None)
    worker.release("a", NOW + 50)
    assert worker.cost_usd(NOW + 100) == worker.cost_usd(NOW) == 25.0


def test_worker_without_a_price_has_no_cost():
    assert ready_worker().cost_usd(NOW) is None
