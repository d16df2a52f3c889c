"""Checks the types and names of a payload's fields, those in its objects and lists included.

A malformed field becomes None in the input, and a malformed element of a list of objects becomes
None in that list, so that the rules can find the problems of all others under their own indices.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from pixpod.contract.job_input import LISTS, OBJECTS, JobInput
from pixpod.contract.problems import (
    MAX_PROBLEMS,
    is_unicode,
    shown_path,
    to_problem,
    unknown_field,
)
from pixpod.errors import Problem

FieldPath = tuple[str | int, ...]
"""The path of a field: `("seed",)`, `("output", "quality")` or `("loras", 1, "scale")`."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The well-formed fields, the problems of the others, and the paths of the others."""

    input: JobInput
    problems: list[Problem]
    malformed: frozenset[str] = frozenset()


def check_types(given: dict[str, Any]) -> Checked:
    """Check names, types and absolute ranges. Any: JSON."""
    garbled = [path for path in fields_of(given) if not is_unicode(str(path[-1]))]
    given = without(given, garbled)  # Pydantic stops at a name that is no Unicode
    problems = [unknown_field(path) for path in garbled[: MAX_PROBLEMS + 1]]
    try:
        return Checked(JobInput.model_validate(given), problems)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
    bad_paths = {_path_of(error["loc"]) for error in errors}
    return Checked(
        _partial_input(without(given, bad_paths), bad_paths),
        problems + [to_problem(error, given) for error in errors[: MAX_PROBLEMS + 1]],
        frozenset(map(shown_path, bad_paths)),
    )


def fields_of(given: Mapping[str, Any]) -> dict[FieldPath, object]:
    """Return the values of all fields: of the input, of OBJECTS, and of elements of LISTS."""
    found: dict[FieldPath, object] = {(name,): value for name, value in given.items()}
    for path, inner in _inner_objects(given):
        found |= {(*path, name): value for name, value in inner.items()}
    return found


def without(given: Mapping[str, Any], paths: Iterable[FieldPath]) -> dict[str, Any]:
    """Return a copy without these fields, which shares no object that `payload` changes."""
    kept = dict(given)
    for name in (*OBJECTS, *LISTS):
        if isinstance(kept.get(name), dict):
            kept[name] = dict(kept[name])
        elif isinstance(kept.get(name), list) and name in LISTS:
            kept[name] = [dict(each) if isinstance(each, dict) else each for each in kept[name]]
    inner_objects = dict(_inner_objects(kept))
    for path in paths:
        parent = inner_objects.get(path[:-1]) if len(path) > 1 else kept
        if parent is not None:
            parent.pop(str(path[-1]), None)
    return kept


def _inner_objects(given: Mapping[str, Any]) -> Iterator[tuple[FieldPath, dict[str, Any]]]:
    for name in OBJECTS:
        inner = given.get(name)
        if isinstance(inner, dict):
            yield (name,), inner
    for name in LISTS:
        listed = given.get(name)
        for index, element in enumerate(listed if isinstance(listed, list) else ()):
            if isinstance(element, dict):
                yield (name, index), element


def _partial_input(sound: dict[str, Any], bad_paths: Iterable[FieldPath]) -> JobInput:
    """Build the input from sound fields; missing ones are None although the type has no None."""
    objects = {name: sound.pop(name, None) for name in OBJECTS}
    lists = {name: sound.pop(name, None) for name in LISTS}
    filled = JobInput.model_validate({"model": "-", "prompt": "-", **sound})
    required = {"model": None, "prompt": None}
    found = {name: getattr(filled, name) for name in sound}
    partial = JobInput.model_construct(**{**required, **found})
    for name, inner in objects.items():
        if isinstance(inner, dict):
            setattr(partial, name, OBJECTS[name].model_validate(inner))
    bad_elements = {path[:2] for path in bad_paths}
    for name, listed in lists.items():
        if isinstance(listed, list):
            bad = {index for index in range(len(listed)) if (name, index) in bad_elements}
            setattr(partial, name, _sound_elements(LISTS[name], listed, bad))
    return partial


def _sound_elements(
    element: type[BaseModel], listed: Sequence[object], bad: set[int]
) -> list[BaseModel | None]:
    return [
        None if index in bad else element.model_validate(each) for index, each in enumerate(listed)
    ]


def _path_of(loc: Sequence[str | int]) -> FieldPath:
    """Return a field's path: `("output", "quality")` unchanged, `("seed",)` for `("seed", 2)`."""
    if loc[0] in LISTS:
        return tuple(loc[:3])
    return tuple(str(part) for part in loc[: 2 if loc[0] in OBJECTS else 1])
