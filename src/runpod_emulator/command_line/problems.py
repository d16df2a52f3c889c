"""Renders pydantic's findings about a document into the emulator's messages, all at once.

Values of `env` are never shown: they may be secrets.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from runpod_emulator.errors import ConfigurationProblems, InvalidConfiguration

Document = TypeVar("Document", bound=BaseModel)

_EXPECTED = {
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "a list that is not empty",
    "dict_type": "a table",
    "mapping_type": "a table",
    "model_type": "a table",
    "path_type": "a path",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "enum": "{expected}",
    "literal_error": "{expected}",
    "value_error": "{error}",
}
"""Our message for each of pydantic's error types; types not listed keep pydantic's message."""


def validated(
    model: type[Document], document: object, context: Mapping[str, Any] | None = None
) -> Document:
    """Parse `document` as a `model`. Raises ConfigurationProblems."""
    try:
        return model.model_validate(document, context=context)
    except ValidationError as error:
        problems = [_problem(model, each) for each in error.errors()]
        raise ConfigurationProblems(problems) from None  # the cause may quote a secret


def unknown_name(field: str, name: str, known: Sequence[str]) -> InvalidConfiguration:
    """Return an error that suggests the name that was probably meant, or lists all names."""
    meant = difflib.get_close_matches(name, known, n=1) or known
    return InvalidConfiguration(field, None, " or ".join(meant), f"there is no {name!r}")


def _problem(model: type[BaseModel], error: Mapping[str, Any]) -> InvalidConfiguration:
    loc, kind, ctx = error["loc"], error["type"], error.get("ctx", {})
    field = _path(loc) or "document"
    if kind == "extra_forbidden":
        return unknown_name(field, str(loc[-1]), _fields_at(model, loc[:-1]))
    if kind == "missing":
        return InvalidConfiguration(field, None, "a value: it is required")
    expected = _EXPECTED[kind].format(**ctx) if kind in _EXPECTED else error["msg"]
    return InvalidConfiguration(field, _shown(loc, error["input"]), expected)


def _path(loc: Sequence[str | int]) -> str:
    """Return a path as text: `tests[0].name` for `("tests", 0, "name")`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).removeprefix(".").removesuffix(".[key]")


def _fields_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    at: Any = model  # a model, or an annotation such as list[Model]
    for part in loc:
        is_model = isinstance(at, type) and issubclass(at, BaseModel)
        at = at.model_fields[str(part)].annotation if is_model else get_args(at)[-1]
    return list(at.model_fields)


def _shown(loc: Sequence[str | int], value: object) -> object:
    """Return a plain value as it is, but None, which shows nothing, for containers and secrets."""
    if isinstance(value, Path):
        return str(value)
    is_plain = isinstance(value, str | int | float | bool)
    return value if is_plain and "env" not in loc else None
