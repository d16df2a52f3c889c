"""One job from the command line, without the platform: `python handler.py --test_input ...`."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixpod.errors import InvalidInput, Problem, WorkerError
from pixpod.payload import render_error
from pixpod.worker import Handler

DEFAULT_FILE = Path("test_input.json")
"""Where the SDK looks too, in the working directory."""

USAGE = """Nothing to do: no job was given and this is not a RunPod worker. Try

    python handler.py --test_input '{"input": {"model": "flux-tiny", "prompt": "a red circle"}}'

or put the job into test_input.json.
"""


def read_test_input(given: str | None) -> str | None:
    """The job's JSON: what the flag says, a file if that is `@FILE`, else test_input.json."""
    if given is None:
        return DEFAULT_FILE.read_text(encoding="utf-8") if DEFAULT_FILE.is_file() else None
    return Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given


def run_job(handler: Handler, text: str) -> dict[str, Any]:
    """Run one job and return it as the platform's status would show it. Any: a JSON document."""
    try:
        job = _parse(text)
    except WorkerError as error:
        return {"id": "local_test", "status": "FAILED", **render_error(error)}
    reply = asyncio.run(_call(handler, job))
    if "error" in reply:
        return {"id": job["id"], "status": "FAILED", **reply}
    return {"id": job["id"], "status": "COMPLETED", "output": reply}


async def _call(handler: Handler, job: Mapping[str, Any]) -> dict[str, Any]:
    return await handler(job)


def _parse(text: str) -> dict[str, Any]:
    try:
        job = json.loads(text)
    except ValueError as exc:
        accepted = f"a JSON object; {exc}"
        raise InvalidInput([Problem(field="test_input", value=None, accepted=accepted)]) from exc
    if not isinstance(job, dict):
        raise InvalidInput([Problem(field="test_input", value=None, accepted="a JSON object")])
    return {"id": "local_test", **job}
