"""Runs one job from the command line, without a platform: `python handler.py --test_input ...`.

Reads the image files that the job names as `@FILE`; a worker opens no file that a job names.
"""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

from pixpod.contract.payload import render_error
from pixpod.errors import InvalidInput, Problem, WorkerError
from pixpod.serving.worker import Handler

FILE_FIELDS = frozenset({"image", "images", "mask"})
"""Fields, at any depth of the input, whose `@FILE` is read, also in a list."""

DEFAULT_ID = "local_test"
DEFAULT_FILE = Path("test_input.json")
"""The SDK has the same id for a local job, and reads the same file of the working directory."""

USAGE = """Nothing to do: no job was given and this is not a RunPod worker. Try

    python handler.py --test_input '{"input": {"model": "flux-tiny", "prompt": "a red circle"}}'

or put the job into test_input.json.
"""


def read_test_input(given: str | None) -> str | None:
    """Return the job's JSON: the flag's value, a file's content for `@FILE`, else test_input.json.

    None if there is no job at all. Raises InvalidInput for a file that cannot be read.
    """
    if given is None:
        return _read(DEFAULT_FILE) if DEFAULT_FILE.is_file() else None
    return _read(Path(given[1:])) if given.startswith("@") else given


def run_job(handler: Handler, text: str) -> dict[str, Any]:
    """Run one job and return it as the platform's status would show it. Any: a JSON document."""
    try:
        job = _parse(text)
    except WorkerError as error:
        return failure(error)
    reply = asyncio.run(handler(job))
    if "error" in reply:
        return {"id": job["id"], "status": "FAILED", **reply}
    return {"id": job["id"], "status": "COMPLETED", "output": reply}


def failure(error: WorkerError) -> dict[str, Any]:
    """Return a failed job as `run_job` does, for a job that never reached a worker."""
    return {"id": DEFAULT_ID, "status": "FAILED", **render_error(error)}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
        raise _refusal(f"a file that can be read; {path}: {reason}") from exc


def _with_files(value: object, path: str = "", name: str = "") -> object:
    """Return a copy in which images named as `@FILE` are base64. `name` is that of the field."""
    if isinstance(value, list):
        return [_with_files(each, f"{path}[{index}]", name) for index, each in enumerate(value)]
    if isinstance(value, dict):
        return {
            field: _with_files(each, f"{path}.{field}" if path else field, field)
            for field, each in value.items()
        }
    if isinstance(value, str) and value.startswith("@") and name in FILE_FIELDS:
        return _read_base64(value[1:], path)
    return value


def _read_base64(name: str, field: str) -> str:
    try:
        return base64.b64encode(Path(name).read_bytes()).decode("ascii")
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        reason = exc.strerror if isinstance(exc, OSError) else "no name of a file"
        accepted = f"a file that can be read; {name}: {reason}"
        raise InvalidInput([Problem(field=field, value=None, accepted=accepted)]) from exc


def _parse(text: str) -> dict[str, Any]:
    try:
        job = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise _refusal(f"a JSON object; {exc}") from exc
    if not isinstance(job, dict):
        raise _refusal("a JSON object")
    if "input" in job:
        job["input"] = _with_files(job["input"])
    return {"id": DEFAULT_ID, **job}


def _refusal(accepted: str) -> InvalidInput:
    return InvalidInput([Problem(field="test_input", value=None, accepted=accepted)])
