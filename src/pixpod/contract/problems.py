"""Describes problems of a payload: the field, a value that may be shown, the accepted values.

Knows no rule of any model; the rules are in `rules.py`.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pixpod.contract.job_input import LISTS, OBJECTS, JobInput
from pixpod.contract.scalars import MAX_SEED, PATTERNS
from pixpod.errors import Problem

MAX_SHOWN_CHARACTERS = 80
MAX_PROBLEMS = 24
"""Maximum number of problems in one error, which stays below 20 kB whatever the payload is."""

KNOWN_ELSEWHERE = {
    "batch_size": "num_images",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "control_image": "controlnets",
    "controlnet": "controlnets",
    "guidance": "guidance_scale",
    "high_noise_frac": "refiner.high_noise_frac",
    "image_prompt": "ip_adapter",
    "image_url": "image",
    "ip_adapter_image": "ip_adapter.image",
    "ip_adapter_scale": "ip_adapter.scale",
    "lora": "loras",
    "n": "num_images",
    "num_outputs": "num_images",
    "output_format": "output.format",
    "refine_steps": "refiner.num_inference_steps",
    "refiner_inference_steps": "refiner.num_inference_steps",
    "refiner_switch_at": "refiner.high_noise_frac",
    "response_format": "output.delivery",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "size": "width and height",
    "steps": "num_inference_steps",
    "text": "prompt",
    "upscale_factor": "upscale",
    "upscaler": "upscale",
    "webhook": "webhook_url",
}
"""Names of our fields in other image APIs."""

ELSEWHERE_INSIDE = {
    "ip_adapter": {
        "image_url": "image",
        "ip_adapter_image": "image",
        "ip_adapter_scale": "scale",
        "model": "name",
        "strength": "scale",
        "type": "name",
        "weight": "scale",
    },
    "loras": {
        "file": "source",
        "lora_scale": "scale",
        "name": "source",
        "path": "source",
        "strength": "scale",
        "url": "source",
        "weight": "scale",
    },
    "controlnets": {
        "conditioning_scale": "scale",
        "control_guidance_end": "end",
        "control_guidance_start": "start",
        "control_image": "image",
        "end_percent": "end",
        "image_url": "image",
        "mode": "type",
        "model": "type",
        "module": "preprocess",
        "name": "type",
        "preprocessor": "preprocess",
        "start_percent": "start",
        "strength": "scale",
        "weight": "scale",
    },
    "refiner": {
        "denoising_end": "high_noise_frac",
        "denoising_start": "high_noise_frac",
        "model": "name",
        "num_steps": "num_inference_steps",
        "steps": "num_inference_steps",
        "switch_at": "high_noise_frac",
    },
}
"""Names of our fields of objects, and of elements of lists, in other image APIs."""

PRIVATE_FIELDS = re.compile(
    r"prompt|prompt_2|negative_prompt|image(\[\d+\])?|mask|loras(\[\d+\](\.source)?)?|idempotency_key"
    r"|controlnets(\[\d+\](\.image)?)?|ip_adapter(\.images?(\[\d+\])?)?"
    r"|webhook_url|output\.put_urls.*|s3Config.*"
)


def to_problem(error: Mapping[str, Any], given: Mapping[str, Any]) -> Problem:
    """Convert one of Pydantic's errors about `given`. Any: Pydantic's dict and JSON."""
    path = field_path(error["loc"], given)
    kind, ctx = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_field(error["loc"])
    if kind == "missing":
        return Problem(field=path, value=None, accepted="a value: the field is required")
    hint = None
    if kind == "string_pattern_mismatch":
        accepted = PATTERNS[ctx["pattern"]]
    elif kind in ("enum", "literal_error"):
        accepted = f"one of {ctx['expected']}"
        hint = did_you_mean(str(error["input"]), re.findall("'([^']+)'", ctx["expected"]))
    else:
        accepted = _ACCEPTED[kind].format(**ctx) if kind in _ACCEPTED else error["msg"]
    return wrong(path, error["input"], accepted, hint)


def field_path(loc: Sequence[str | int], given: Mapping[str, Any]) -> str:
    """Return the path of a field in the caller's payload: `output.quality`, `seed[1]`.

    Pydantic counts elements of the lists that it has made itself: a `seed` given as one number is
    its element 0, and stays `seed` here. So does the `url` of a text in `output.put_urls`.
    """
    path = ""
    value: Any = given
    for part in loc:
        if isinstance(part, str) and isinstance(value, str):
            break
        if isinstance(part, str):
            path = f"{path}.{part}" if path else part
            value = value.get(part) if isinstance(value, dict) else None
        elif isinstance(value, list):
            path = f"{path}[{part}]"
            value = value[part]
    return path


def first_ones(problems: Sequence[Problem]) -> list[Problem]:
    """Return all problems, or the first MAX_PROBLEMS and one that says that there are more."""
    if len(problems) <= MAX_PROBLEMS:
        return list(problems)
    more = Problem(field="input", value=None, accepted="fewer problems: these are the first")
    return [*problems[:MAX_PROBLEMS], more]


_ACCEPTED = {
    "string_type": "a string",
    "string_unicode": "a string of valid Unicode",
    "string_too_short": "a string that is not empty",
    "string_too_long": "at most {max_length} characters",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "too_short": "a list that is not empty",
    "model_type": "an object",
    "dict_type": "an object",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}
"""Our message for each of Pydantic's error types; types not listed keep Pydantic's message."""


def unknown_field(loc: Sequence[str | int]) -> Problem:
    """Describe a field that the contract does not have, by its path in the payload."""
    outer, name = str(loc[0]), str(loc[-1])
    known, others = JobInput.model_fields, KNOWN_ELSEWHERE
    if len(loc) > 1 and outer in OBJECTS:
        known, others = OBJECTS[outer].model_fields, ELSEWHERE_INSIDE.get(outer, others)
    elif len(loc) > 1 and outer in LISTS:
        known, others = LISTS[outer].model_fields, ELSEWHERE_INSIDE[outer]
    elsewhere = others.get(name)
    hint = f"here it is {elsewhere}" if elsewhere else did_you_mean(name, list(known))
    accepted = "a field of the contract"
    return Problem(field=shown_path(loc), value=None, accepted=accepted, hint=hint)


def shown_path(loc: Sequence[str | int]) -> str:
    """Return a path as errors show it: `output.quality`, `loras[1].scale`."""
    first, *others = (f"[{part}]" if isinstance(part, int) else _shown_text(part) for part in loc)
    return first + "".join(part if part.startswith("[") else f".{part}" for part in others)


def did_you_mean(name: str, known: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(name[:MAX_SHOWN_CHARACTERS], known, n=1)
    return f"did you mean {close[0]!r}?" if close else None


def wrong(field: str, value: object, accepted: str, hint: str | None = None) -> Problem:
    return Problem(field=field, value=_shown(field, value), accepted=accepted, hint=hint)


def _shown(field: str, value: object) -> object:
    """Return a value for an error text: short, valid JSON, no part of a prompt or an address."""
    if isinstance(value, str):
        is_private = PRIVATE_FIELDS.fullmatch(field) is not None
        return f"{len(value)} characters" if is_private else _shown_text(value)
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)} fields"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_SEED:
        return f"a number of {value.bit_length()} bits"
    return value if isinstance(value, bool | int | float | None) else type(value).__name__


def is_unicode(text: str) -> bool:
    """Return False for a text with half a surrogate pair, which JSON can carry and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown_text(text: str) -> str:
    if "://" in text:
        return f"an address of {len(text)} characters"  # may carry a key or a signature
    printable = text.encode("utf-8", "replace").decode("utf-8")
    if len(printable) <= MAX_SHOWN_CHARACTERS:
        return printable
    return printable[:MAX_SHOWN_CHARACTERS] + "..."
