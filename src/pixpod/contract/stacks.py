"""Fills jobs with the fields of the stack that they name.

Fields given beside it win. A problem of a filled field is one of `stack`, which the caller has
given.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pixpod.catalog import Catalog
from pixpod.contract.fields import check_types
from pixpod.contract.problems import did_you_mean, wrong
from pixpod.errors import InvalidSettings, Problem
from pixpod.extras import Extras, extras_for
from pixpod.job import FilledStack
from pixpod.stacks import PRESETS, Presets, preset_of_fields, read_presets_file

FILLED_INSIDE = "output"
"""An object whose fields are settings of their own. Others describe one thing and are filled as a
whole."""


def load_presets(file: Path | None = None, *, source: str = "PIXPOD_PRESETS") -> Presets:
    """Return the presets that every deployment has, and those of a file.

    Raises InvalidSettings, which names `source`, for a file that cannot be used and for fields that
    no job may have.
    """
    if file is None:
        return PRESETS
    own = read_presets_file(file, source)
    for name, fields in own.items():
        checked = check_types({"model": "-", "prompt": "-", **fields})
        for problem in checked.problems[:1]:
            hint = f": {problem.hint}" if problem.hint else ""
            raise InvalidSettings(
                f"{source}: {name}: {problem.field}: expected {problem.accepted}{hint}"
            )
    return {**PRESETS, **{name: preset_of_fields(fields) for name, fields in own.items()}}


def check_stack(given: Mapping[str, Any], presets: Presets) -> list[Problem]:
    """Return the problem of a name that no preset has. Any: JSON."""
    name = given.get("stack")
    if not isinstance(name, str) or name in presets:
        return []
    accepted = f"one of {', '.join(presets)}"
    return [wrong("stack", name, accepted, did_you_mean(name, tuple(presets)))]


def fill_stack(
    given: Mapping[str, Any], presets: Presets, models: Catalog, extras: Extras
) -> tuple[dict[str, Any], FilledStack | None]:
    """Return an input with the fields of its stack, and which these are.

    The input is unchanged without a stack, or if that or the model has no name that is known. Any:
    JSON.
    """
    name, model = given.get("stack"), given.get("model")
    preset = presets.get(name) if isinstance(name, str) else None
    spec = models.get(model) if isinstance(model, str) else None
    if preset is None or spec is None:
        return dict(given), None
    filled: dict[str, Any] = {}
    for field, value in preset.fields_of(spec, extras_for(spec, extras)).items():
        beside = given.get(field)
        if beside is None:
            filled[field] = value
        elif field == FILLED_INSIDE and isinstance(beside, dict) and isinstance(value, dict):
            missing = {key: each for key, each in value.items() if beside.get(key) is None}
            if missing:
                filled[field] = missing
    merged = {
        field: {**given[field], **value} if given.get(field) is not None else value
        for field, value in filled.items()
    }
    return {**given, **merged}, FilledStack(name=str(name), fields=filled)


def name_for_caller(problems: Sequence[Problem], stack: FilledStack | None) -> list[Problem]:
    """Return the problems, those of filled fields as problems of `stack`."""
    if stack is None:
        return list(problems)
    return [
        replace(
            problem,
            field="stack",
            value=stack.name,
            accepted=f"a stack that fits the job: {problem.field}: expected {problem.accepted}",
        )
        if _is_filled(problem.field, stack.fields)
        else problem
        for problem in problems
    ]


def _is_filled(path: str, fields: Mapping[str, object]) -> bool:
    outer, *inner = re.split(r"[.\[]", path)
    filled = fields.get(outer)
    if outer == FILLED_INSIDE and isinstance(filled, dict) and inner:
        return inner[0] in filled
    return outer in fields
