"""Repetitions in turns (A B A B, never A A B B), so that what else the machine does hits all alike.

Knows no torch and no processes.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any


class NotHere(Exception):
    """Something cannot be measured on this machine, and why."""


Details = Mapping[str, Any]
"""Any: a JSON document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run. `marks` are moments on the way, in seconds, that become timings of their own;
    `ended_at` is the perf_counter of who waited for it.
    """

    seconds: float
    size_bytes: int | None = None
    marks: Mapping[str, float] = field(default_factory=dict)
    details: Details = field(default_factory=dict)
    ended_at: float | None = None


Run = Callable[[Callable[[], None]], Sample]
"""Runs once; calls what it is given right before the clock starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All runs of one subject in one state of the page cache, in seconds."""

    case: str
    name: str
    state: str
    seconds: tuple[float, ...]
    size_bytes: int | None
    details: Details

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread_percent(self) -> float:
        """(slowest - fastest) / median."""
        return 100 * (max(self.seconds) - min(self.seconds)) / self.median_s

    @property
    def gigabytes_per_s(self) -> float | None:
        return self.size_bytes / self.median_s / 1e9 if self.size_bytes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What could not be measured here."""

    case: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How often each subject is run, and in which states of the page cache."""

    repetitions: int
    states: Sequence[str]
    prepare: Callable[[str], None]
    on_run: Callable[[str, str], None]
    may_go_on: Callable[[], bool] = lambda: True


def measure(
    case: str, subjects: Mapping[str, Run], rounds: Rounds
) -> tuple[list[Timing], list[Missing]]:
    """One timing per subject and state. A subject that cannot run is left out, with its reason."""
    samples: dict[tuple[str, str], list[Sample]] = {}
    missing: dict[str, str] = {}
    for _ in range(rounds.repetitions):
        for state in rounds.states:
            for name, run in subjects.items():
                if name in missing:
                    continue
                if not rounds.may_go_on():
                    missing.setdefault(name, "out of time")
                    continue
                rounds.on_run(name, state)
                try:
                    sample = run(partial(rounds.prepare, state))
                except NotHere as exc:
                    missing[name] = str(exc)
                    continue
                samples.setdefault((name, state), []).append(sample)
                for mark, seconds in sample.marks.items():
                    passed = Sample(seconds=seconds, size_bytes=sample.size_bytes)
                    samples.setdefault((f"{name}, {mark}", state), []).append(passed)
    timings = [_timing(case, *key, runs) for key, runs in samples.items()]
    return timings, [
        Missing(case=case, name=name, reason=reason) for name, reason in missing.items()
    ]


def _timing(case: str, name: str, state: str, runs: Sequence[Sample]) -> Timing:
    return Timing(
        case=case,
        name=name,
        state=state,
        seconds=tuple(run.seconds for run in runs),
        size_bytes=runs[0].size_bytes,
        details=runs[-1].details,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A ratio beside what it should be; `at_least` tells which side of the target is good.

    `lowest` and `highest` are over the rounds: each run against its neighbour in time.
    """

    target: str
    case: str
    state: str
    ratio: float
    lowest: float
    highest: float
    limit: float
    at_least: bool

    @property
    def is_met(self) -> bool:
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Seconds of `above` over seconds of `below`, by the names of two subjects."""

    title: str
    above: str
    below: str
    limit: float
    at_least: bool

    def judge(self, timings: Iterable[Timing]) -> list[Verdict]:
        """One verdict for each case and state in which both were measured."""
        found = {(timing.case, timing.state, timing.name): timing for timing in timings}
        verdicts = []
        for (case, state, name), above in found.items():
            below = found.get((case, state, self.below))
            if name != self.above or below is None:
                continue
            pairs = [a / b for a, b in zip(above.seconds, below.seconds, strict=False)]
            verdicts.append(
                Verdict(
                    target=self.title,
                    case=case,
                    state=state,
                    ratio=above.median_s / below.median_s,
                    lowest=min(pairs),
                    highest=max(pairs),
                    limit=self.limit,
                    at_least=self.at_least,
                )
            )
        return verdicts
