"""Typed reads of an environment; a value that cannot be used names its variable."""

import hmac
import re
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

from pixpod.errors import InvalidSettings

T = TypeVar("T")


class Secret:
    """A string that must not be shown: `repr` and `str` mask it, `reveal` gives it."""

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
    """Typed reads of a mapping; an empty value counts as absent."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def text(self, *names: str) -> str | None:
        """The first of several names that is set."""
        values = (self._variables.get(name, "").strip() for name in names)
        return next((value for value in values if value), None)

    def read(self, convert: Callable[[str], T], name: str) -> T | None:
        value = self.text(name)
        if value is None:
            return None
        try:
            return convert(value)
        except ValueError as exc:
            raise InvalidSettings(f"{name}={_without_credentials(value)!r}: {exc}") from exc

    def listed(self, name: str) -> tuple[str, ...] | None:
        value = self.text(name)
        if value is None:
            return None
        return tuple(part.strip() for part in value.split(",") if part.strip())

    def choice(self, name: str, accepted: tuple[str, ...]) -> str:
        """One of `accepted`; its first entry is the default."""
        value = self.text(name) or accepted[0]
        if value not in accepted:
            raise InvalidSettings(f"{name}={value!r}: expected {', '.join(accepted)}")
        return value

    def switch(self, name: str, *, default: bool) -> bool:
        accepted = ("true", "false") if default else ("false", "true")
        return self.choice(name, accepted) == "true"

    def whole(self, name: str, default: int, lowest: int, highest: int) -> int:
        value = self.read(_whole_number, name)
        if value is None:
            return default
        if not lowest <= value <= highest:
            raise InvalidSettings(f"{name}={value}: expected {lowest} to {highest}")
        return value


def _whole_number(value: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", value):
        raise ValueError("expected a whole number")
    return int(value)


def _without_credentials(value: str) -> str:
    """A value fit for an error, which callers may see: no `user:password@` of an address."""
    return re.sub(r"[^/]*@", "***@", value)


def web_address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("expected an http or https address without user and password")
    return value.rstrip("/")
