"""How long the phases of a boot or of a job take."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Clock = Callable[[], float]
"""Seconds that only grow, from any start."""


class Timeline:
    """Adds up milliseconds by phase; phases may overlap and may come back."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._ms: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block, also if it raises."""
        started = self._clock()
        try:
            yield
        finally:
            self.add(name, (self._clock() - started) * 1e3)

    def add(self, name: str, milliseconds: float) -> None:
        self._ms[name] += milliseconds

    def milliseconds(self) -> dict[str, float]:
        """What has been added up so far, to a tenth."""
        return {name: round(spent, 1) for name, spent in self._ms.items()}
