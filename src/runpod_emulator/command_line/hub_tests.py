"""RunPod Hub's tests.json: what it holds, when a test of it passes, and the table of results.

The Hub passes a test whose endpoint answers 200. That is true of a failed job too, so here the
job must have COMPLETED as well. It knows no HTTP.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from runpod_emulator.command_line.problems import validated
from runpod_emulator.errors import EmulatorError
from runpod_emulator.jobs.job import JobStatus

_STRICT = ConfigDict(extra="forbid", strict=True)
MAX_ERROR_CHARACTERS = 100


class HubTest(BaseModel):
    """`timeout` is the longest execution, in milliseconds."""

    model_config = _STRICT

    name: str = Field(min_length=1)
    input: dict[str, Any] = Field(repr=False)
    timeout: int | None = Field(default=None, gt=0)

    @property
    def timeout_s(self) -> float | None:
        return None if self.timeout is None else self.timeout / 1000


class HubVariable(BaseModel):
    model_config = _STRICT

    key: str = Field(min_length=1)
    value: str = Field(repr=False)


class HubConfig(BaseModel):
    """The machine that the Hub tests on. A CPU flavour and CUDA versions mean nothing here."""

    model_config = _STRICT

    gpuTypeId: str | None = None
    gpuCount: int | None = Field(default=None, ge=1)
    cpuFlavor: str | None = None
    allowedCudaVersions: list[str] = Field(default_factory=list)
    env: list[HubVariable] = Field(default_factory=list)


def _named_once(tests: list[HubTest]) -> list[HubTest]:
    names = [test.name for test in tests]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"a name of its own for each test, unlike {', '.join(twice)}")
    return tests


class HubTests(BaseModel):
    """The whole file."""

    model_config = _STRICT

    tests: Annotated[list[HubTest], Field(min_length=1), AfterValidator(_named_once)]
    config: HubConfig = Field(default_factory=HubConfig)

    @property
    def env(self) -> Mapping[str, str]:
        return {variable.key: variable.value for variable in self.config.env}

    def without_timeouts(self) -> "HubTests":
        tests = [test.model_copy(update={"timeout": None}) for test in self.tests]
        return self.model_copy(update={"tests": tests})


def read_hub_tests(path: Path) -> HubTests:
    """Raises EmulatorError, with everything that the Hub does not know."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EmulatorError(f"{path}: cannot be read as JSON: {error}") from error
    return validated(HubTests, document)


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


def report_of(results: Sequence[HubResult]) -> str:
    """A table, the errors in full where a line did not hold them, and how many have passed."""
    rows = [("", "test", "status", "seconds", "error"), *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = "\n".join(_line(row, widths) for row in rows)
    details = (
        f"{result.name}:\n{indent(result.error.strip(), '    ')}"
        for result in results
        if result.error is not None and _first_line(result.error) != result.error.strip()
    )
    num_passed = sum(result.has_passed for result in results)
    summary = f"{num_passed} of {len(results)} passed"
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
