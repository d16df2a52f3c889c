"""What is told of many times. Standard library only."""

import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank: always one of the values, of which there must be some."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(0, int(rank) - 1)]


def spread_percent(values: Sequence[float]) -> float:
    """From the slowest to the fastest, of the median."""
    return 100 * (max(values) - min(values)) / statistics.median(values)
