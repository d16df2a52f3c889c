"""Readable forms of what the SDK prints in a worker and reports as a job's error."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

WORKER_OUTPUT = "runpod_emulator.worker_output"
"""The logger that repeats what workers print."""

LEVELS = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
}
"""The SDK's levels as those of `logging`; anything else is INFO."""


@dataclass(frozen=True, slots=True)
class PrintedLine:
    """A line of a worker's output. `job_id` is None outside a job and for a plain print."""

    level: int
    job_id: str | None
    text: str


def parse_line(line: str) -> PrintedLine:
    """Read a line of the SDK's JSON log; any other line is text at INFO."""
    parsed = _object(line)
    message, job_id = parsed.get("message"), parsed.get("requestId", ...)
    if not isinstance(message, str) or not isinstance(job_id, str | None):
        return PrintedLine(logging.INFO, None, line)
    level = LEVELS.get(str(parsed.get("level")), logging.INFO)
    return PrintedLine(level, job_id, readable_error(message))


def readable_error(error: str) -> str:
    """Return a handler's exception, which the SDK puts into JSON, as its type, text and traceback.

    Any other error stays as it is.
    """
    parsed = _object(error)
    if "error_message" not in parsed:
        return error
    kind = str(parsed.get("error_type", "error")).removeprefix("<class '").removesuffix("'>")
    return f"{kind}: {parsed['error_message']}\n{parsed.get('error_traceback', '')}"


def _object(text: str) -> Mapping[str, object]:
    if not text.startswith("{"):
        return {}
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
