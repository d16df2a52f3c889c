"""Refusals of what a caller names, and the coded error that they become.

The contract reports what it can see in the payload as `invalid_input`, before any I/O. After
fetching, all refusals of a job are reported at once under the first code of ORDER.
"""

from collections.abc import Mapping

from pixpod.errors import (
    FetchFailed,
    FetchUnavailable,
    ImageRefused,
    PayloadError,
    Problem,
    UrlRefused,
    WeightsRefused,
)

ORDER: tuple[type[PayloadError], ...] = (
    UrlRefused,
    FetchFailed,
    FetchUnavailable,
    ImageRefused,
    WeightsRefused,
)


class Refused(Exception):
    """A rule of this package is broken. `error` is the class that carries it to the caller.

    `value` is a host or a measured property, never a path, a query or content.
    """

    def __init__(
        self,
        error: type[PayloadError],
        accepted: str,
        *,
        value: str | int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(f"expected {accepted}, got {value}")
        self.error = error
        self.accepted = accepted
        self.value = value
        self.hint = hint

    def problem(self, field: str) -> Problem:
        """Return it as a problem of this field of the payload."""
        return Problem(field=field, value=self.value, accepted=self.accepted, hint=self.hint)


def to_error(refusals: Mapping[str, Refused]) -> PayloadError:
    """Return the error for all refusals of a job, by their fields. There must be one at least."""
    error = min((each.error for each in refusals.values()), key=ORDER.index)
    return error([refused.problem(field) for field, refused in refusals.items()])
