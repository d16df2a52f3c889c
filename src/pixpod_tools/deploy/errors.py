"""Errors of a deployment, worded for the person who runs it.

DeployError                    status
├── InvalidConfiguration       2   a flag or a key of the file cannot be used
├── NotConfirmed               3   the plan was not confirmed; nothing was changed
├── CredentialsRefused         4   no API key, a wrong one, or one without the right
├── RequestRefused             5   the platform does not accept the request
├── EndpointConflict           6   an endpoint of the name exists and cannot be updated
└── PlatformUnavailable        7   too many requests, an error of the platform, no connection
"""

from typing import ClassVar


class DeployError(Exception):
    """Base of all; the message says what is wrong and what to do. `status` is the exit status."""

    status: ClassVar[int] = 1


class InvalidConfiguration(DeployError):
    """A field cannot be used. `value` is shown: leave it None for a secret or nothing."""

    status = 2

    def __init__(self, field: str, value: object, accepted: str) -> None:
        given = "" if value is None else f" = {value!r}"
        super().__init__(f"{field}{given}: expected {accepted}")
        self.field = field


class NotConfirmed(DeployError):
    """The plan was not confirmed, or there was no terminal to confirm it on."""

    status = 3


class CredentialsRefused(DeployError):
    """There is no API key, or the platform does not accept it (401, 403)."""

    status = 4


class RequestRefused(DeployError):
    """The platform understood the request and refuses it (400, 404, 409, 422)."""

    status = 5


class EndpointConflict(DeployError):
    """Endpoints of this name exist, and none can be updated to the wanted one."""

    status = 6


class PlatformUnavailable(DeployError):
    """The same request may succeed later (429, 5xx, no answer, an answer that cannot be read).

    `retry_after_s` is the least time to wait, or None if the user has to decide whether to retry.
    """

    status = 7

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
