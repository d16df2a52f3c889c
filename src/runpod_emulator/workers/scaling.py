"""Decides how many workers an endpoint should have, which to stop, and when to try again.

A pure function of the endpoint's settings, its state and the time; it knows no process and no job,
and does not decide which workers are THROTTLED.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Final

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.jobs.store import Backlog
from runpod_emulator.settings import EndpointSettings, Scaler
from runpod_emulator.workers.state import WorkerState

COMING = (WorkerState.INITIALIZING, WorkerState.THROTTLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker as scaling sees it. `idle_since` matters for IDLE workers only."""

    id: str
    state: WorkerState
    idle_since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointView:
    """One endpoint as scaling sees it. `last_step_at` is the time when workers were last added."""

    backlog: Backlog
    in_progress: int
    workers: tuple[WorkerView, ...]
    last_step_at: float | None = None

    @property
    def wanted(self) -> tuple[WorkerView, ...]:
        return tuple(worker for worker in self.workers if worker.state.is_wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The number of workers to start, or the ids of those to stop; never both at once."""

    start: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The demand that a scaler sees before the endpoint's bounds apply.

    `grow_to` is the number of workers that should exist by now, `keep` that of still useful ones.
    """

    grow_to: int
    keep: int


def decide(
    settings: EndpointSettings, behaviour: Behaviour, view: EndpointView, now: float
) -> Decision:
    """Start workers up to `workers_max`, or stop useless ones down to `workers_min`.

    Running and initializing workers are never stopped. Workers without a process (THROTTLED,
    UNHEALTHY) go first and at once, then idle ones whose timeout is over, longest idle first.
    """
    num_wanted = len(view.wanted)
    demand = DEMANDS[settings.scaler](settings, behaviour, view, now)
    grow_to = min(settings.workers_max, max(settings.workers_min, demand.grow_to))
    if grow_to > num_wanted:
        return Decision(start=grow_to - num_wanted)
    num_surplus = max(0, num_wanted - max(settings.workers_min, demand.keep))
    return Decision(stop=_dispensable(settings, view, now)[:num_surplus])


def backoff_s(consecutive_failures: int, behaviour: Behaviour) -> float:
    """Return the pause before the next start after so many crashes in a row: 0, 1, 2, 4 ..."""
    if consecutive_failures <= 0:
        return 0.0
    return min(behaviour.retry_backoff_max_s, 2.0 ** min(consecutive_failures - 1, 60))


def _queue_delay(
    settings: EndpointSettings, behaviour: Behaviour, view: EndpointView, now: float
) -> Demand:
    """Add a step when the oldest job waits too long; a starting worker counts for one waiting job.

    The first worker does not wait for the delay. This is inferred: nothing else could take a job.
    """
    num_wanted = len(view.wanted)
    num_coming = sum(worker.state in COMING for worker in view.wanted)
    num_unserved = view.backlog.waiting - num_coming
    step = 0
    if num_unserved > 0 and num_wanted == 0:
        step = 1
    elif num_unserved > 0 and _is_step_due(settings, view, now):
        step = min(behaviour.workers_per_step, num_unserved)
    keep = num_wanted + num_unserved if view.backlog.waiting > 0 else 0
    return Demand(grow_to=num_wanted + step, keep=keep)


def _is_step_due(settings: EndpointSettings, view: EndpointView, now: float) -> bool:
    oldest, last = view.backlog.oldest_queued_at, view.last_step_at
    waits_too_long = oldest is not None and now >= oldest + settings.scaler_value
    return waits_too_long and (last is None or now >= last + settings.scaler_value)


def _request_count(
    settings: EndpointSettings, behaviour: Behaviour, view: EndpointView, now: float
) -> Demand:
    """Return `ceil((inQueue + inProgress) / value)`, documented in endpoint-configurations."""
    target = ceil((view.backlog.waiting + view.in_progress) / settings.scaler_value)
    return Demand(grow_to=target, keep=target)


DEMANDS: Final[
    Mapping[Scaler, Callable[[EndpointSettings, Behaviour, EndpointView, float], Demand]]
] = {
    Scaler.QUEUE_DELAY: _queue_delay,
    Scaler.REQUEST_COUNT: _request_count,
}


def _dispensable(settings: EndpointSettings, view: EndpointView, now: float) -> tuple[str, ...]:
    """Return the ids of workers that could be stopped, in the order in which they should be."""
    throttled = _in_state(view, WorkerState.THROTTLED)
    if view.backlog.waiting > 0:
        return throttled
    idle = sorted(
        (worker.idle_since, worker.id)
        for worker in view.workers
        if worker.state is WorkerState.IDLE
        and worker.idle_since is not None
        and now >= worker.idle_since + settings.idle_timeout_s
    )
    return throttled + _in_state(view, WorkerState.UNHEALTHY) + tuple(id_ for _, id_ in idle)


def _in_state(view: EndpointView, state: WorkerState) -> tuple[str, ...]:
    return tuple(worker.id for worker in view.workers if worker.state is state)
