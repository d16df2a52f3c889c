"""How many workers an endpoint gets: examples of each rule, then what holds for any view."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.jobs.store import Backlog
from runpod_emulator.settings import EndpointSettings, Scaler
from runpod_emulator.workers.scaling import Decision, EndpointView, WorkerView, backoff_s, decide
from runpod_emulator.workers.state import WorkerState

NOW = 1000.0
BEHAVIOUR = Behaviour()
ENDPOINT = EndpointSettings(id="e", command=("worker",), workers_max=4)
COUNTING = replace(ENDPOINT, scaler=Scaler.REQUEST_COUNT, scaler_value=2)


def workers(*states, idle_s=0.0):
    return tuple(
        WorkerView(
            id=f"{state.value.lower()}-{number}",
            state=state,
            idle_since=NOW - idle_s if state is WorkerState.IDLE else None,
        )
        for number, state in enumerate(states)
    )


def view(*states, waiting=0, waited_s=0.0, in_progress=0, stepped_s=None, idle_s=0.0):
    oldest = NOW - waited_s if waiting else None
    return EndpointView(
        backlog=Backlog(waiting=waiting, oldest_queued_at=oldest),
        in_progress=in_progress,
        workers=workers(*states, idle_s=idle_s),
        last_step_at=None if stepped_s is None else NOW - stepped_s,
    )


def decided(view, settings=ENDPOINT, behaviour=BEHAVIOUR):
    return decide(settings, behaviour, view, NOW)


INITIALIZING, IDLE, RUNNING, THROTTLED, UNHEALTHY, DRAINING, STOPPED = WorkerState


def test_nothing_to_do_starts_nothing():
    assert decided(view()) == Decision()


def test_minimum_is_started_without_any_job():
    settings = replace(ENDPOINT, workers_min=2)
    assert decided(view(), settings).start == 2
    assert decided(view(INITIALIZING), settings).start == 1
    assert decided(view(DRAINING, STOPPED), settings).start == 2


def test_first_worker_does_not_wait_for_the_delay():
    assert decided(view(waiting=3)).start == 1
    assert decided(view(DRAINING, waiting=3)).start == 1


def test_second_worker_waits_for_the_delay():
    assert decided(view(RUNNING, waiting=1, waited_s=3.9)).start == 0
    assert decided(view(RUNNING, waiting=1, waited_s=4.0)).start == 1


def test_steps_are_a_delay_apart():
    late = {"waiting": 5, "waited_s": 60.0}
    assert decided(view(RUNNING, stepped_s=3.9, **late)).start == 0
    assert decided(view(RUNNING, stepped_s=4.0, **late)).start == 1


def test_step_is_as_large_as_the_platform_is_believed_to_make_it():
    wide = Behaviour(workers_per_step=2)
    assert decided(view(RUNNING, waiting=5, waited_s=9.0), behaviour=wide).start == 2
    assert decided(view(RUNNING, waiting=1, waited_s=9.0), behaviour=wide).start == 1


@pytest.mark.parametrize("coming", [INITIALIZING, THROTTLED])
def test_coming_worker_stands_for_one_waiting_job(coming):
    assert decided(view(coming, waiting=1, waited_s=60.0)) == Decision()
    assert decided(view(coming, waiting=2, waited_s=60.0)).start == 1


def test_unhealthy_worker_stands_for_no_job():
    assert decided(view(UNHEALTHY, waiting=1, waited_s=60.0)).start == 1


@pytest.mark.parametrize("settings", [ENDPOINT, COUNTING])
def test_maximum_holds_however_long_the_queue(settings):
    for last in (RUNNING, UNHEALTHY, THROTTLED):
        full = view(THROTTLED, RUNNING, RUNNING, last, waiting=999, waited_s=999.0)
        assert decided(full, settings) == Decision()


def test_draining_worker_does_not_fill_the_maximum():
    seen = view(RUNNING, RUNNING, RUNNING, DRAINING, STOPPED, waiting=9, waited_s=9.0)
    assert decided(seen).start == 1


@pytest.mark.parametrize(
    ("waiting", "in_progress", "start"), [(0, 0, 0), (1, 0, 1), (2, 0, 1), (2, 1, 2), (99, 0, 4)]
)
def test_request_count_starts_its_target_at_once(waiting, in_progress, start):
    seen = view(waiting=waiting, in_progress=in_progress, stepped_s=0.0)
    assert decided(seen, COUNTING).start == start


def test_idle_worker_is_stopped_after_its_timeout():
    assert decided(view(IDLE, idle_s=4.9)) == Decision()
    assert decided(view(IDLE, idle_s=5.0)).stop == ("idle-0",)


@pytest.mark.parametrize("state", [RUNNING, INITIALIZING, DRAINING, STOPPED])
def test_only_idle_workers_have_an_idle_timeout(state):
    once_idle = WorkerView(id="w", state=state, idle_since=NOW - 99.0)
    assert decided(replace(view(), workers=(once_idle,))) == Decision()


def test_idle_worker_of_the_minimum_stays():
    settings = replace(ENDPOINT, workers_min=1)
    assert decided(view(IDLE, idle_s=99.0), settings) == Decision()
    assert decided(view(IDLE, RUNNING, idle_s=99.0), settings).stop == ("idle-0",)


def test_longest_idle_worker_goes_first():
    settings = replace(ENDPOINT, workers_min=1)
    short, long = workers(IDLE, IDLE, idle_s=6.0)
    seen = replace(view(), workers=(short, replace(long, idle_since=NOW - 7.0)))
    assert decided(seen, settings).stop == ("idle-1",)


@pytest.mark.parametrize("settings", [ENDPOINT, COUNTING])
def test_idle_worker_stays_while_jobs_wait(settings):
    assert decided(view(IDLE, RUNNING, waiting=1, idle_s=99.0), settings).stop == ()


def test_request_count_keeps_idle_workers_up_to_its_target():
    seen = view(RUNNING, IDLE, in_progress=4, idle_s=99.0)
    assert decided(seen, COUNTING) == Decision()
    assert decided(replace(seen, in_progress=2), COUNTING).stop == ("idle-1",)


@pytest.mark.parametrize("settings", [ENDPOINT, COUNTING])
def test_throttled_worker_goes_at_once_when_nothing_waits(settings):
    assert decided(view(RUNNING, THROTTLED, in_progress=1), settings).stop == ("throttled-1",)


def test_only_throttled_workers_beyond_the_waiting_jobs_go():
    seen = view(THROTTLED, THROTTLED, INITIALIZING, waiting=2)
    assert decided(seen).stop == ("throttled-0",)


def test_throttled_worker_goes_before_an_idle_one():
    settings = replace(ENDPOINT, workers_min=1)
    assert decided(view(IDLE, THROTTLED, idle_s=99.0), settings).stop == ("throttled-1",)


def test_unhealthy_worker_goes_before_an_idle_one_but_is_tried_again_while_jobs_wait():
    settings = replace(ENDPOINT, workers_min=1)
    assert decided(view(IDLE, UNHEALTHY, idle_s=99.0), settings).stop == ("unhealthy-1",)
    assert decided(view(RUNNING, UNHEALTHY, waiting=1), settings).stop == ()


def test_pause_doubles_with_each_failure_up_to_its_longest():
    pauses = [backoff_s(failures, BEHAVIOUR) for failures in (0, 1, 2, 3, 6, 7, 8, 10**9)]
    assert pauses == [0, 1, 2, 4, 32, 60, 60, 60]


TIMES = st.one_of(st.none(), st.floats(-10, 2000))
VIEWS = st.builds(
    EndpointView,
    backlog=st.builds(Backlog, waiting=st.integers(-2, 6), oldest_queued_at=TIMES),
    in_progress=st.integers(-2, 6),
    workers=st.lists(st.tuples(st.sampled_from(WorkerState), TIMES), max_size=8).map(
        lambda drawn: tuple(
            WorkerView(id=f"w{number}", state=state, idle_since=idle_since)
            for number, (state, idle_since) in enumerate(drawn)
        )
    ),
    last_step_at=TIMES,
)
ENDPOINTS = st.builds(
    EndpointSettings,
    id=st.just("e"),
    command=st.just(()),
    workers_min=st.integers(0, 4),
    workers_max=st.integers(0, 6),
    idle_timeout_s=st.floats(1, 100),
    scaler=st.sampled_from(Scaler),
    scaler_value=st.floats(0.25, 20),
)
BEHAVIOURS = st.builds(Behaviour, workers_per_step=st.integers(1, 3))


@tried(deadline=None)
@given(ENDPOINTS, BEHAVIOURS, VIEWS)
def test_any_view_keeps_the_bounds(settings, behaviour, seen):
    decision = decide(settings, behaviour, seen, NOW)
    num_wanted = sum(worker.state.is_wanted for worker in seen.workers)
    least = min(settings.workers_min, settings.workers_max)
    after = num_wanted + decision.start - len(decision.stop)
    assert decision.start >= 0
    assert not (decision.start and decision.stop)
    assert decision.start == 0 or after <= settings.workers_max
    assert after >= least


@tried(deadline=None)
@given(ENDPOINTS, BEHAVIOURS, VIEWS)
def test_any_view_stops_only_what_does_no_work(settings, behaviour, seen):
    states = {worker.id: worker.state for worker in seen.workers}
    stop = decide(settings, behaviour, seen, NOW).stop
    stopped = Counter(states[id_] for id_ in stop)
    assert len(set(stop)) == len(stop)
    assert stopped.keys() <= {IDLE, THROTTLED, UNHEALTHY}
    if seen.backlog.waiting > 0:
        assert stopped.keys() <= {THROTTLED}
    if stopped[IDLE]:
        assert stopped[THROTTLED] == sum(state is THROTTLED for state in states.values())


@tried(deadline=None)
@given(ENDPOINTS, BEHAVIOURS, VIEWS, st.integers(0, 5))
def test_more_waiting_jobs_never_mean_fewer_workers(settings, behaviour, seen, more):
    busier = replace(seen, backlog=replace(seen.backlog, waiting=seen.backlog.waiting + more))
    quiet, busy = (decide(settings, behaviour, each, NOW) for each in (seen, busier))
    assert busy.start - len(busy.stop) >= quiet.start - len(quiet.stop)


@tried(deadline=None)
@given(ENDPOINTS, BEHAVIOURS, VIEWS)
def test_decision_that_was_carried_out_is_not_taken_back_at_once(settings, behaviour, seen):
    first = decide(settings, behaviour, seen, NOW)
    kept = tuple(worker for worker in seen.workers if worker.id not in first.stop)
    new = (WorkerView(id=f"new-{number}", state=INITIALIZING) for number in range(first.start))
    stepped_at = NOW if first.start else seen.last_step_at
    after = replace(seen, workers=(*kept, *new), last_step_at=stepped_at)
    second = decide(settings, behaviour, after, NOW)
    assert not (first.stop and second.start)
    assert not (first.start and second.stop)
    assert not (first.start and second.start)
