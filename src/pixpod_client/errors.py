"""Errors of the client.

    ClientError
    ├── Unreachable       no complete answer of the platform or of a store
    ├── ApiError          the platform refuses a request
    ├── WaitTimedOut      the job is not over yet
    ├── DownloadFailed       an image is not there, or is another one
    ├── JobCancelled
    ├── JobTimedOut       the platform ended the job
    └── JobFailed         pixpod answered with an error
        ├── CallerError        change the request
        ├── DeploymentError    the owner of the endpoint has to act
        └── HostError          the same job may succeed

Each code of pixpod is a class of its own in `pixpod_client.job_errors`.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar


class ClientError(Exception):
    """Base of all errors of the client, except those of webhooks."""


class Unreachable(ClientError):
    """There was no complete answer. A submitted job may run all the same."""


class ApiError(ClientError):
    """The platform answered with another HTTP status than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text}")
        self.status = status


class WaitTimedOut(ClientError, TimeoutError):
    """The job was not over in time. It goes on."""


class DownloadFailed(ClientError):
    """An image cannot be fetched, or its SHA-256 is not that of the reply."""


class JobCancelled(ClientError):
    """The job was cancelled."""


class JobTimedOut(ClientError):
    """The platform ended the job because of one of its time limits."""


class JobFailed(ClientError):
    """A job failed. `code` is None for an error of the platform, which has no code.

    `problems` are those of the payload: `{"field", "value", "accepted", "hint"}`. Any: JSON.
    """

    code: ClassVar[str | None] = None

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.problems: list[Mapping[str, Any]] = _problems(text)


class CallerError(JobFailed):
    """The request has to be changed."""


class DeploymentError(JobFailed):
    """The owner of the endpoint has to act."""


class HostError(JobFailed):
    """The worker could not do it; the same job may succeed."""


def _problems(text: str) -> list[Mapping[str, Any]]:
    _, _, detail = text.partition(": ")
    try:
        found = json.loads(detail)
    except ValueError:
        return []
    problems = found.get("problems") if isinstance(found, dict) else None
    if not isinstance(problems, list):
        return []
    return [each for each in problems if isinstance(each, dict)]
