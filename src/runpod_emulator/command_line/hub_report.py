"""The results of Hub tests: when a test passes, and the table of results.

The Hub passes a test whose endpoint answers 200, which it does for a failed job, too. So here the
job must also have COMPLETED.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import indent

from runpod_emulator.jobs.job import JobStatus

MAX_ERROR_CHARACTERS = 100
NOT_RUN = "an HTTP test; load-balancing endpoints are not emulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubResult:
    """The result of one test. `status` is None if the endpoint accepted no job."""

    name: str
    http_status: int | None
    status: JobStatus | None
    duration_s: float
    error: str | None = field(default=None, repr=False)

    @property
    def has_passed(self) -> bool:
        return self.http_status == 200 and self.status is JobStatus.COMPLETED

    @property
    def outcome(self) -> str:
        if self.status is not None:
            return self.status
        return "no answer" if self.http_status is None else f"HTTP {self.http_status}"


def report_of(results: Sequence[HubResult], not_run: Sequence[str] = ()) -> str:
    """Return a table, errors that do not fit into its lines, and the number of passed tests."""
    rows = [
        ("", "test", "status", "seconds", "error"),
        *(_row(result) for result in results),
        *(("skip", name, "not run", "", NOT_RUN) for name in not_run),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = "\n".join(_line(row, widths) for row in rows)
    details = (
        f"{result.name}:\n{indent(result.error.strip(), '    ')}"
        for result in results
        if result.error is not None and _first_line(result.error) != result.error.strip()
    )
    num_passed = sum(result.has_passed for result in results)
    summary = f"{num_passed} of {len(results)} passed"
    if not_run:
        summary += f", {len(not_run)} not run"
    return "\n\n".join((table, *details, summary)) + "\n"


def _row(result: HubResult) -> tuple[str, ...]:
    mark = "ok" if result.has_passed else "FAIL"
    error = _first_line(result.error or "")
    return (mark, result.name, result.outcome, f"{result.duration_s:.1f}", error)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (
        f"{cell:{side}{width}}" for cell, side, width in zip(row, "<<<><", widths, strict=True)
    )
    return "  ".join(cells).rstrip()


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= MAX_ERROR_CHARACTERS else f"{line[: MAX_ERROR_CHARACTERS - 3]}..."
