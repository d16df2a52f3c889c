"""Jobs over plain HTTP, for tests that look at what the platform answers."""

import json
import time
import urllib.request
from typing import Any
from urllib.parse import quote

from runpod_emulator.testing import RunningEmulator

POLL_S = 0.05


def call(
    platform: RunningEmulator,
    path: str,
    body: object = None,
    *,
    method: str | None = None,
    endpoint_id: str = "test",
) -> dict[str, Any]:
    """What the client API of an endpoint answers; a body makes it a POST."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {platform.api_key}", "Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{platform.base_url}/{quote(endpoint_id)}{path}",
        data=data,
        headers=headers,
        method=method,
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def submit(platform: RunningEmulator, request: dict[str, Any], *, endpoint_id: str = "test") -> str:
    """The id of an asynchronous job."""
    job_id: str = call(platform, "/run", request, endpoint_id=endpoint_id)["id"]
    return job_id


def wait_for(platform: RunningEmulator, job_id: str, timeout_s: float = 120) -> dict[str, Any]:
    """The status object of a job that has ended. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while (status := call(platform, f"/status/{job_id}"))["status"] in ("IN_QUEUE", "IN_PROGRESS"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {job_id} is {status['status']} after {timeout_s:.0f} s")
        time.sleep(POLL_S)
    return status
