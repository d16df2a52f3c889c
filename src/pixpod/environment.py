"""Environment variables: accepted values, and how they are read. Standard library only."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from pixpod.errors import InvalidSettings

T = TypeVar("T")
Text = TypeVar("Text", bound=str)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """Values that a variable accepts, in words for documents and messages.

    `convert` raises ValueError for all others; a text that begins with "expected" says more.
    Messages do not show secrets.
    """

    accepted: str
    convert: Callable[[str], T]
    is_secret: bool = False


def one_of(*accepted: Text) -> Kind[Text]:
    def convert(value: str) -> Text:
        found = next((each for each in accepted if each == value), None)
        if found is None:
            raise ValueError
        return found

    return Kind(f"one of {', '.join(f'`{each}`' for each in accepted)}", convert)


def whole(lowest: int, highest: int, *, times: int = 1) -> Kind[int]:
    """Return the kind of whole numbers from `lowest` to `highest`, in units of `times`."""

    def convert(value: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", value) or not lowest <= int(value) <= highest:
            raise ValueError
        return int(value) * times

    return Kind(f"a whole number from {lowest} to {highest}", convert)


def split_list(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def web_address(value: str) -> str:
    """Return an address without the slashes at its end. Raises ValueError for any other text."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError
    return value.rstrip("/")


TEXT = Kind("a text", str)
SECRET = Kind("a text", SecretStr)
NAMES = Kind("comma-separated names", split_list)
SWITCH = Kind("one of `true`, `false`", lambda value: not ("true", "false").index(value))
ADDRESS = Kind("an http or https address without user and password", web_address)


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of ours.

    `default` is a value that may be set, or None where `no_default` says what applies instead.
    `also_reads` are the usual names of RunPod and AWS, which apply if the variable is not set.
    """

    name: str
    kind: Kind[Any]
    meaning: str
    default: str | None = None
    no_default: str = ""
    also_reads: tuple[str, ...] = ()


def variable(name: str, kind: Kind[T], meaning: str, **more: Any) -> Any:  # noqa: ANN401
    """Declare the field of a dataclass that a Variable sets; `more` are further fields of it."""
    return field(metadata={"variable": Variable(name, kind, meaning, **more)})


def variables_of(settings: type) -> dict[str, Variable]:
    """Return the variables of a dataclass by field."""
    return {
        each.name: each.metadata["variable"]
        for each in fields(settings)
        if "variable" in each.metadata
    }


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

    def read(self, name: str, kind: Kind[T], default: str | None = None) -> T | None:
        """Return the converted value or default, or None if there is neither."""
        value = self.text(name) or default
        if value is None:
            return None
        try:
            return kind.convert(value)
        except ValueError as exc:
            reason = str(exc)
            if not reason.startswith("expected"):
                reason = f"expected {kind.accepted.replace('`', '')}"
            if kind.is_secret:  # callers may see the error
                raise InvalidSettings(f"{name}: {reason}, got another text") from None
            shown = re.sub(r"[^/]*@", "***@", value)  # credentials
            raise InvalidSettings(f"{name}: {reason}, got {shown!r}") from exc

    def read_fields(self, settings: type) -> dict[str, Any]:
        """Return the values of a dataclass's variables by field; None for one that is not set."""
        return {
            name: self.read(each.name, each.kind, each.default)
            for name, each in variables_of(settings).items()
        }
