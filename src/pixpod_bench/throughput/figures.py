"""Rounds in turns, and what is made of them: medians, ratios, slopes. Numbers only."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name")
Sample = TypeVar("Sample")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """`lowest` and `highest` are over the rounds: each against its neighbour in time."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} ... {self.highest:.2f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A figure beside what it should be; `at_least` tells which side of the limit is good."""

    target: str
    subject: str
    value: float
    limit: float
    at_least: bool

    @property
    def is_met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def in_turns(
    sides: Mapping[Name, Callable[[int], Sample]],
    rounds: int,
    on_run: Callable[[], object] = lambda: None,
) -> dict[Name, list[Sample]]:
    """Run each side once a round, given the round's number: A B, B A, A B ..., so that neither
    what else the machine does nor who comes first favours one of them.
    """
    samples: dict[Name, list[Sample]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            samples[name].append(sides[name](number))
            on_run()
    return samples


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Round by round; both have as many."""
    pairs = [a / b for a, b in zip(above, below, strict=True)]
    return Ratio(median=statistics.median(pairs), lowest=min(pairs), highest=max(pairs))


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the straight line nearest to the points, by least squares."""
    return statistics.linear_regression(xs, ys).slope
