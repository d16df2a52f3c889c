"""Statistics of repeated measurements. Standard library only."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name")
Sample = TypeVar("Sample")

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The median of ratios of pairs, and the confidence interval of the true median.

    `low` and `high` are None with fewer than six pairs, which cannot give 95 % confidence.
    """

    median: float
    low: float | None
    high: float | None
    pairs: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.median:.3f} ({self.pairs} pairs)"
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A figure beside its target; `at_least` says on which side of the limit it should be.

    `value` and `is_met` are None if nothing was measured.
    """

    target: str
    subject: str
    value: float | None
    limit: float
    at_least: bool
    unit: str = ""

    @property
    def is_met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile, which is one of the values; these must not be empty."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(0, int(rank) - 1)]


def spread_percent(values: Sequence[float]) -> float:
    """Return the distance from the fastest to the slowest in percent of the median."""
    return 100 * (max(values) - min(values)) / statistics.median(values)


def median_interval(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Return a confidence interval of the median from order statistics, or None for too few values.

    The interval is from the k-th smallest to the k-th largest value, with the largest k for which
    2 * P(Binomial(n, 1/2) < k) <= 1 - confidence: the sign test inverted, with no assumption about
    the distribution (Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2).
    """
    n, tail, k = len(values), 0.0, 0
    while k < n:
        tail += 2 * math.comb(n, k) / 2**n
        if tail > 1 - confidence:
            break
        k += 1
    ordered = sorted(values)
    return (ordered[k - 1], ordered[n - k]) if k else None


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Compare pair by pair, so that temporary load of the machine affects both sides."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, high = median_interval(ratios) or (None, None)
    return Ratio(median=statistics.median(ratios), low=low, high=high, pairs=len(ratios))


def alternate(
    sides: Mapping[Name, Callable[[int], Sample]],
    rounds: int,
    on_run: Callable[[], object] = lambda: None,
) -> dict[Name, list[Sample]]:
    """Run each side once per round, given the round's number, in the order A B, B A, A B ...

    Neither a slow drift of the machine nor the order within a round favours one side.
    """
    samples: dict[Name, list[Sample]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            samples[name].append(sides[name](number))
            on_run()
    return samples
