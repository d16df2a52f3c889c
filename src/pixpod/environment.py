"""Read typed values from an environment. An error names the variable and the accepted values."""

import hmac
import re
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

from pixpod.errors import InvalidSettings

T = TypeVar("T")


class Secret:
    """A string that must not be shown: `repr` and `str` mask it, `reveal` returns it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)


class Environment:
    """Read typed values from a mapping. An empty value counts as not set.

    Each method raises InvalidSettings for a value that cannot be used.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def text(self, *names: str) -> str | None:
        """Return the value of the first name that is set, or None."""
        values = (self._variables.get(name, "").strip() for name in names)
        return next((value for value in values if value), None)

    def read(self, convert: Callable[[str], T], name: str) -> T | None:
        """Return the converted value, or None if it is not set.

        `convert` raises ValueError("expected ...") for a value that cannot be used.
        """
        value = self.text(name)
        if value is None:
            return None
        try:
            return convert(value)
        except ValueError as exc:
            raise InvalidSettings(f"{name}: {exc}, got {_without_credentials(value)!r}") from exc

    def listed(self, name: str) -> tuple[str, ...] | None:
        """Return the comma-separated parts of the value, or None if it is not set."""
        value = self.text(name)
        if value is None:
            return None
        return tuple(part.strip() for part in value.split(",") if part.strip())

    def choice(self, name: str, accepted: tuple[str, ...]) -> str:
        """Return the value, one of `accepted`. The first of them is the default."""
        value = self.text(name) or accepted[0]
        if value not in accepted:
            raise InvalidSettings(f"{name}: expected one of {', '.join(accepted)}, got {value!r}")
        return value

    def switch(self, name: str, *, default: bool) -> bool:
        """Return True for `true` and False for `false`."""
        if self.text(name) is None:
            return default
        return self.choice(name, ("true", "false")) == "true"

    def whole(self, name: str, default: int, lowest: int, highest: int) -> int:
        """Return a whole number from `lowest` to `highest`."""

        def convert(value: str) -> int:
            if not re.fullmatch(r"-?[0-9]{1,18}", value) or not lowest <= int(value) <= highest:
                raise ValueError(f"expected a whole number from {lowest} to {highest}")
            return int(value)

        value = self.read(convert, name)
        return default if value is None else value


def _without_credentials(value: str) -> str:
    """Mask `user:password@` of an address, because callers may see the error."""
    return re.sub(r"[^/]*@", "***@", value)


def web_address(value: str) -> str:
    """Return an address without the slashes at its end. Raises ValueError for any other text."""
    expected = "expected an http or https address without user and password"
    try:
        parts = urlsplit(value)
    except ValueError as exc:  # brackets without an IPv6 address between them
        raise ValueError(expected) from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError(expected)
    return value.rstrip("/")
