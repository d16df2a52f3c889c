"""Measures the phases of a boot or of a job."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Clock = Callable[[], float]
"""Returns seconds of a clock that never goes back, from any start."""


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
        """Return the milliseconds added up so far by phase, to a tenth."""
        return {name: round(spent, 1) for name, spent in self._ms.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span of a boot, in seconds since the process began. `subject` is a model or one of
    its components; `size_bytes` is the number of bytes read meanwhile.
    """

    phase: str
    began_s: float
    ended_s: float
    subject: str = ""
    size_bytes: int | None = None


class BootTimeline:
    """The overlapping phases of a boot. May be written to by any thread.

    Phases are `start` (interpreter and settings), `sdk`, `import` of each library, `device`,
    `read`, `build`, `bind`, `quantize`, `warm`, and the moments `taking_jobs`, `ready` and
    `first_image`.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._spans: list[Span] = []

    @contextmanager
    def span(self, phase: str, subject: str = "") -> Iterator[None]:
        began_s = self.clock()
        try:
            yield
        finally:
            self.add(Span(phase=phase, subject=subject, began_s=began_s, ended_s=self.clock()))

    def mark(self, phase: str, subject: str = "") -> None:
        """Add a moment: a span without length."""
        now_s = self.clock()
        self.add(Span(phase=phase, subject=subject, began_s=now_s, ended_s=now_s))

    def add(self, span: Span) -> None:
        self._spans.append(span)

    def spans(self) -> tuple[Span, ...]:
        return tuple(sorted(self._spans, key=lambda span: (span.began_s, span.ended_s)))

    def milliseconds(self) -> dict[str, float]:
        """Return milliseconds by phase and model, e.g. `bind_sdxl`: from the first beginning to the
        last end; for a moment, the time since the process began.
        """
        groups: dict[str, list[Span]] = {}
        for span in self.spans():
            model = span.subject.partition("/")[0]
            groups.setdefault(f"{span.phase}_{model}" if model else span.phase, []).append(span)
        return {name: _extent_ms(spans) for name, spans in groups.items()}


def _extent_ms(spans: Sequence[Span]) -> float:
    ended_s = max(span.ended_s for span in spans)
    began_s = min(span.began_s for span in spans)
    return round((ended_s - began_s if ended_s > began_s else ended_s) * 1e3, 1)


def since_process_start() -> Clock:
    """Return a clock of the seconds since the operating system created this process.

    Without /proc, which counts in hundredths of a second, the clock begins with this call.
    """
    try:
        stat = Path("/proc/self/stat").read_text(encoding="ascii")
    except OSError:
        first_s = time.perf_counter()
        return lambda: time.perf_counter() - first_s
    ticks = int(stat.rpartition(")")[2].split()[_START_TIME])
    began_s = ticks / os.sysconf("SC_CLK_TCK")
    return lambda: time.clock_gettime(time.CLOCK_BOOTTIME) - began_s


_START_TIME = 19
"""Field 22 of proc(5)'s stat, counted from the one after the name in brackets."""
