"""Reads the boot timeline in a worker's log as rows that may overlap, with their reading speed."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from pixpod.timeline import Span

MESSAGE = "boot timeline"
"""Message of the log line that a worker writes with its first image."""

READ, READY = "read", "ready"
MOMENTS = ("taking_jobs", READY, "first_image")


class NoTimeline(Exception):
    """The log has no boot timeline that can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One bar: a phase of the boot, of one model or component if it has one.

    `size_bytes` is the number of bytes read meanwhile; None for phases that read nothing.
    """

    name: str
    subject: str
    began_s: float
    ended_s: float
    size_bytes: int | None = None

    @property
    def took_s(self) -> float:
        return self.ended_s - self.began_s

    @property
    def gigabytes_per_s(self) -> float | None:
        """Speed of reading; None if nothing was read, or the phase took no time."""
        if not self.size_bytes or self.took_s <= 0:
            return None
        return self.size_bytes / self.took_s / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class BootReport:
    """A boot: bars in the order in which they began, and moments as phases without length.

    `reads` are all bytes of each model; `phases` has them by component.
    """

    phases: tuple[Phase, ...]
    reads: tuple[Phase, ...]
    moments: tuple[Phase, ...]

    @property
    def total_s(self) -> float:
        return max(phase.ended_s for phase in (*self.phases, *self.moments))


def read_log(lines: Iterable[str]) -> tuple[Span, ...]:
    """Return the spans of the last boot in a log. Other lines, and text before the JSON of a line
    such as a time, are ignored.

    Raises NoTimeline if there is none.
    """
    found: tuple[Span, ...] | None = None
    for line in lines:
        if MESSAGE in line and (document := _object_in(line)) is not None:
            found = _parse_spans(document)
    if found is None:
        raise NoTimeline(
            f"no line with the message {MESSAGE!r}: a worker logs it with its first image, at the "
            "level INFO; expected the log of such a worker"
        )
    return found


def until_ready(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return the spans that began before the last model was ready, i.e. without the first image,
    which takes minutes with a large model on a CPU. Raises NoTimeline if no model was ready.
    """
    spans = tuple(spans)
    ready = [span.ended_s for span in spans if span.phase == READY]
    if not ready:
        raise NoTimeline("the boot timeline has no model that was ready")
    return tuple(span for span in spans if span.began_s <= max(ready))


def make_boot_report(spans: Iterable[Span]) -> BootReport:
    """Arrange spans as a report. Raises NoTimeline if there are no spans."""
    spans = tuple(spans)
    if not spans:
        raise NoTimeline("the boot timeline has no phases")
    moments = [span for span in spans if span.phase in MOMENTS]
    reading = [span for span in spans if span.phase == READ]
    others = [span for span in spans if span.phase not in (READ, *MOMENTS)]
    phases = [_phase(span.phase, span.subject, (span,)) for span in others]
    phases += _joined(reading, depth=2)
    return BootReport(
        phases=_in_order(phases),
        reads=_in_order(_joined(reading, depth=1)),
        moments=_in_order(_phase(span.phase, span.subject, (span,)) for span in moments),
    )


def format_boot(report: BootReport) -> str:
    """Return a table: phases, then the bytes read of each model, then the moments."""
    titles = ("phase", "of", "began s", "ended s", "took s", "GB", "GB/s")
    rows = [_cells(phase) for phase in report.phases]
    rows += [("",) * len(titles)]
    rows += [_cells(phase, name="read, in all") for phase in report.reads]
    rows += [
        (phase.name.replace("_", " "), phase.subject, f"{phase.began_s:.2f}", *("",) * 4)
        for phase in report.moments
    ]
    sides = ("left", "left", *("right",) * 5)
    return tabulate(rows, titles, colalign=sides, disable_numparse=True) + "\n"


def _object_in(line: str) -> dict[str, object] | None:
    try:
        document = json.loads(line[line.index("{") :])
    except ValueError:
        return None
    is_timeline = isinstance(document, dict) and document.get("message") == MESSAGE
    return document if is_timeline else None


def _parse_spans(document: dict[str, object]) -> tuple[Span, ...]:
    spans = document.get("spans")
    try:
        if not isinstance(spans, list):
            raise TypeError("spans")
        return tuple(Span(**span) for span in spans)
    except TypeError as exc:
        raise NoTimeline(
            f"the line {MESSAGE!r} has spans of another form: use the report of that version"
        ) from exc


def _joined(spans: Sequence[Span], depth: int) -> list[Phase]:
    """Join spans of `model/component/file` that have the first `depth` parts in common."""
    groups: dict[str, list[Span]] = {}
    for span in spans:
        groups.setdefault("/".join(span.subject.split("/")[:depth]), []).append(span)
    return [_phase(READ, subject, group) for subject, group in groups.items()]


def _phase(name: str, subject: str, spans: Sequence[Span]) -> Phase:
    sizes = [span.size_bytes for span in spans if span.size_bytes is not None]
    return Phase(
        name=name,
        subject=subject,
        began_s=min(span.began_s for span in spans),
        ended_s=max(span.ended_s for span in spans),
        size_bytes=sum(sizes) if sizes else None,
    )


def _in_order(phases: Iterable[Phase]) -> tuple[Phase, ...]:
    return tuple(sorted(phases, key=lambda phase: (phase.began_s, phase.ended_s)))


def _cells(phase: Phase, name: str | None = None) -> tuple[str, ...]:
    rate = phase.gigabytes_per_s
    return (
        name or phase.name,
        phase.subject,
        f"{phase.began_s:.2f}",
        f"{phase.ended_s:.2f}",
        f"{phase.took_s:.2f}",
        "" if phase.size_bytes is None else f"{phase.size_bytes / 1e9:.2f}",
        "" if rate is None else f"{rate:.2f}",
    )
