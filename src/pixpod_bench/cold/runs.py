"""Repeats runs in turns (A B A B, never A A B B), so that other load affects all subjects alike.

Knows no torch and no processes.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from pixpod_bench.figures import Ratio, Verdict, ratio_of, spread_percent


class NotHere(Exception):
    """Something cannot be measured on this machine; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run. `marks` are moments during it, in seconds, which become timings of their own."""

    seconds: float
    size_bytes: int | None = None
    marks: Mapping[str, float] = field(default_factory=dict)


Before = Callable[[], None]
"""Called right before the clock starts."""

Run = Callable[[Before], Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of each run of one subject in one state of the page cache."""

    case: str
    name: str
    state: str
    seconds: tuple[float, ...]
    size_bytes: int | None

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread_percent(self) -> float:
        return spread_percent(self.seconds)

    @property
    def gigabytes_per_s(self) -> float | None:
        return self.size_bytes / self.median_s / 1e9 if self.size_bytes else None


def measure(
    case: str,
    subjects: Mapping[str, Run],
    repetitions: int,
    states: Sequence[str],
    prepare: Callable[[str], None],
    on_run: Callable[[], object] = lambda: None,
    may_go_on: Callable[[], bool] = lambda: True,
) -> tuple[list[Timing], dict[str, str]]:
    """Return one timing per subject and state, and the reasons why a subject was left out.

    `prepare` makes a state of the page cache. Every second round runs in reverse order.
    """
    samples: dict[tuple[str, str], list[Sample]] = {}
    missing: dict[str, str] = {}
    for number in range(repetitions):
        for state in states:
            for name in list(subjects)[:: 1 if number % 2 == 0 else -1]:
                if name in missing:
                    continue
                if not may_go_on():
                    missing[name] = "out of time"
                    continue
                on_run()
                try:
                    sample = subjects[name](partial(prepare, state))
                except NotHere as exc:
                    missing[name] = str(exc)
                    continue
                samples.setdefault((name, state), []).append(sample)
                for mark, seconds in sample.marks.items():
                    samples.setdefault((f"{name}, {mark}", state), []).append(
                        Sample(seconds=seconds)
                    )
    timings = [
        Timing(
            case=case,
            name=name,
            state=state,
            seconds=tuple(run.seconds for run in runs),
            size_bytes=runs[0].size_bytes,
        )
        for (name, state), runs in samples.items()
    ]
    return timings, missing


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio of times: seconds of `above` over those of `below`, by the names of two subjects."""

    title: str
    above: str
    below: str
    limit: float
    at_least: bool = False

    def ratios(self, timings: Iterable[Timing]) -> list[tuple[str, Ratio]]:
        """Return the ratio for each case and state in which both were measured, pair by pair."""
        found = {(timing.case, timing.state, timing.name): timing for timing in timings}
        ratios = []
        for (case, state, name), above in found.items():
            below = found.get((case, state, self.below))
            if name == self.above and below is not None:
                num_pairs = min(len(above.seconds), len(below.seconds))
                ratio = ratio_of(above.seconds[:num_pairs], below.seconds[:num_pairs])
                ratios.append((f"{case}, {state}", ratio))
        return ratios

    def judge(self, timings: Iterable[Timing]) -> list[Verdict]:
        return [
            Verdict(
                target=self.title,
                subject=subject,
                value=ratio.median,
                limit=self.limit,
                at_least=self.at_least,
            )
            for subject, ratio in self.ratios(timings)
        ]
