"""Faults on demand: rules with place, kind and frequency, and a plan that selects from them.

Each rule has its own seeded random generator, so that a failing run can be repeated and a further
rule does not change the others. This module applies no fault.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TypeVar

_Member = TypeVar("_Member", bound=StrEnum)


class FaultPoint(StrEnum):
    """A place for a fault: a route of the worker or client API, or a stage of a worker.

    `job-taken` is after the job was handed out, `job-result` when its result has arrived and is
    not yet recorded.
    """

    JOB_TAKE = "job-take"
    JOB_DONE = "job-done"
    JOB_STREAM = "job-stream"
    JOB_STOP = "job-stop"
    PING = "ping"
    RUN = "run"
    RUNSYNC = "runsync"
    STATUS = "status"
    STATUS_SYNC = "status-sync"
    STREAM = "stream"
    CANCEL = "cancel"
    RETRY = "retry"
    PURGE_QUEUE = "purge-queue"
    HEALTH = "health"
    REQUESTS = "requests"
    WORKER_START = "worker-start"
    JOB_TAKEN = "job-taken"
    JOB_RESULT = "job-result"


class FaultAction(StrEnum):
    """A kind of fault; `VALUES` defines the meaning of its `value`.

    `drop` closes the connection before anything is done, `drop-reply` does the work and sends no
    answer. `spot` is SIGTERM, then SIGKILL. Actions that apply together are carried out one after
    another: at a worker's stage, a `delay` before a `kill` moves the kill into the middle of a job.
    """

    DELAY = "delay"
    DROP = "drop"
    DROP_REPLY = "drop-reply"
    STATUS = "status"
    SLOW = "slow"
    KILL = "kill"
    FREEZE = "freeze"
    SPOT = "spot"
    THROTTLE = "throttle"


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberRange:
    """The range allowed for a number in a rule."""

    meaning: str
    least: float
    most: float
    is_whole: bool = False

    def accepts(self, value: float) -> bool:
        is_inside = self.least <= value <= self.most
        return is_inside and (not self.is_whole or float(value).is_integer())

    def __str__(self) -> str:
        return f"{self.meaning}, {self.least:.16g} to {self.most:.16g}"


_DAY_S = 86_400
_MANY = 1_000_000_000

VALUES = {
    FaultAction.DELAY: NumberRange(meaning="seconds", least=0, most=_DAY_S),
    FaultAction.STATUS: NumberRange(meaning="an HTTP status", least=200, most=599, is_whole=True),
    FaultAction.SLOW: NumberRange(meaning="bytes per second of the answer", least=1, most=_MANY),
    FaultAction.SPOT: NumberRange(meaning="seconds from SIGTERM to SIGKILL", least=0, most=_DAY_S),
}
"""The actions that need a `value`; the others take none."""

_PROBABILITY = NumberRange(meaning="a number", least=0, most=1)
_FROM_0 = NumberRange(meaning="a whole number", least=0, most=_MANY, is_whole=True)
_FROM_1 = NumberRange(meaning="a whole number", least=1, most=_MANY, is_whole=True)

_ON_ROUTES = frozenset(
    {
        FaultAction.DELAY,
        FaultAction.DROP,
        FaultAction.DROP_REPLY,
        FaultAction.STATUS,
        FaultAction.SLOW,
    }
)
_ON_WORKERS = frozenset({FaultAction.DELAY, FaultAction.KILL, FaultAction.FREEZE, FaultAction.SPOT})

ACTIONS: Mapping[FaultPoint, frozenset[FaultAction]] = {
    **dict.fromkeys(FaultPoint, _ON_ROUTES),
    FaultPoint.WORKER_START: _ON_WORKERS | {FaultAction.THROTTLE},
    FaultPoint.JOB_TAKEN: _ON_WORKERS,
    FaultPoint.JOB_RESULT: _ON_WORKERS,
}
"""The actions that each point allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRule:
    """One fault. Of the passes that fit its filters (None fits all), the first `after` are let
    through, then every `every`-th one is hit with `probability`, `count` times at most.
    """

    id: str
    at: FaultPoint
    action: FaultAction
    value: float | None = None
    probability: float = 1.0
    count: int | None = None
    after: int = 0
    every: int = 1
    endpoint_id: str | None = None
    worker_id: str | None = None
    job_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultTally:
    """A rule, the number of passes that fitted its filters, and the number of these that it hit."""

    rule: FaultRule
    passes: int
    hits: int


class InvalidFault(ValueError):
    """A rule that cannot be used; the message names the field and its value."""

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(f"{name}: expected {expected}, got {repr(value)[:80]}")


def parse_rule(raw: object) -> FaultRule:
    """Parse a rule from its JSON object. Without an `id` it is called `<at>-<action>`.

    Raises `InvalidFault`.
    """
    if not isinstance(raw, Mapping):
        raise InvalidFault("fault", raw, "a JSON object")
    names = [known.name for known in fields(FaultRule)]
    for name in raw:
        if name not in names:
            raise InvalidFault("field", name, ", ".join(names))
    at = _member(raw, "at", FaultPoint)
    action = _member(raw, "action", ACTIONS[at], f" (at {at})")
    return FaultRule(
        id=_text(raw, "id") or f"{at}-{action}",
        at=at,
        action=action,
        value=_value(raw, action),
        probability=_number(raw, "probability", 1.0, _PROBABILITY),
        count=None if raw.get("count") is None else int(_number(raw, "count", 1, _FROM_1)),
        after=int(_number(raw, "after", 0, _FROM_0)),
        every=int(_number(raw, "every", 1, _FROM_1)),
        endpoint_id=_text(raw, "endpoint_id"),
        worker_id=_text(raw, "worker_id"),
        job_id=_text(raw, "job_id"),
    )


@dataclass(slots=True)
class _Armed:
    """A rule in use: its random generator, and the numbers of its passes and hits."""

    rule: FaultRule
    chance: random.Random
    passes: int = 0
    hits: int = 0

    def strikes(self) -> bool:
        """Count one more pass, and return whether it is hit."""
        rule = self.rule
        self.passes += 1
        num_open = self.passes - rule.after
        if num_open < 1 or (num_open - 1) % rule.every:
            return False
        if self.hits == rule.count or self.chance.random() >= rule.probability:
            return False
        self.hits += 1
        return True


class FaultPlan:
    """The rules in force, in the order in which they were added.

    The hits of a rule depend only on the seed, its id and the number of its passes. A rule that
    is removed and added again starts from the beginning.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._armed: dict[str, _Armed] = {}

    @property
    def rules(self) -> Sequence[FaultTally]:
        return tuple(
            FaultTally(rule=armed.rule, passes=armed.passes, hits=armed.hits)
            for armed in self._armed.values()
        )

    def add(self, rule: FaultRule) -> None:
        """Add a rule. Raises `InvalidFault` for an id that is in use."""
        if rule.id in self._armed:
            raise InvalidFault("id", rule.id, f"any but those in use: {', '.join(self._armed)}")
        # for repeatable runs, not for secrets
        chance = random.Random(f"{self._seed}:{rule.id}")  # noqa: S311
        self._armed[rule.id] = _Armed(rule, chance)

    def remove(self, rule_id: str) -> bool:
        """Remove a rule. Return False if there is none with this id."""
        return self._armed.pop(rule_id, None) is not None

    def clear(self) -> None:
        self._armed.clear()

    def select(
        self,
        at: FaultPoint,
        *,
        endpoint_id: str,
        worker_id: str | None = None,
        job_id: str | None = None,
    ) -> tuple[FaultRule, ...]:
        """Count one pass of `at`; return the rules that hit it, in the order of the plan."""
        place = {"endpoint_id": endpoint_id, "worker_id": worker_id, "job_id": job_id}
        return tuple(
            armed.rule
            for armed in self._armed.values()
            if armed.rule.at is at and _fits(armed.rule, place) and armed.strikes()
        )


def _fits(rule: FaultRule, place: Mapping[str, str | None]) -> bool:
    return all(getattr(rule, name) in (None, actual) for name, actual in place.items())


def _member(
    raw: Mapping[object, object], name: str, members: Iterable[_Member], where: str = ""
) -> _Member:
    value = raw.get(name)
    for member in members:
        if member == value:
            return member
    raise InvalidFault(name, value, ", ".join(sorted(members)) + where)


def _text(raw: Mapping[object, object], name: str) -> str | None:
    value = raw.get(name)
    if value is None or (isinstance(value, str) and value):
        return value
    raise InvalidFault(name, value, "a text that is not empty")


def _value(raw: Mapping[object, object], action: FaultAction) -> float | None:
    value = raw.get("value")
    if action in VALUES:
        return _checked("value", value, VALUES[action])
    if value is not None:
        raise InvalidFault("value", value, f"none, since {action} takes no value")
    return None


def _number(
    raw: Mapping[object, object], name: str, default: float, expected: NumberRange
) -> float:
    value = raw.get(name)
    return default if value is None else _checked(name, value, expected)


def _checked(name: str, value: object, expected: NumberRange) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and expected.accepts(value):
        return value
    raise InvalidFault(name, value, str(expected))
