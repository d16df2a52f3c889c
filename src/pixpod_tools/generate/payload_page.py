"""Render docs/payload.md from the contract's types and the tree of errors."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from pixpod.catalog import Defaults
from pixpod.contract.describe_reply import DescribeReply
from pixpod.contract.job_input import LISTS, OBJECTS
from pixpod.contract.reply import TimingsReply
from pixpod.contract.scalars import PATTERNS
from pixpod.errors import Fault, WorkerError
from pixpod_tools.generate.json_schema import json_schemas
from pixpod_tools.generate.markdown import code, generated_from, table

_REQUEST = """\
# The payload

A job is sent as `{"input": {...}}`. `model` and `prompt` are required. A field that is left out,
or is null, takes the default. A model has limits of its own for sizes, steps, guidance and number
of images: see [models.md](models.md). The names are those of diffusers where it has one. Unknown
fields are refused, and nothing is changed silently. Fields of objects are written with a dot, those
of the objects of a list with `[]` and a dot.

```json
{"input": {"model": "sdxl", "prompt": "a lighthouse", "output": {"format": "webp"}}}
```

"""

_BESIDE = """
The platform's own `webhook`, `policy` and `s3Config`, which stand beside `input`, work as
usual. [delivery.md](delivery.md) describes `output.put_urls`, `s3Config` and what happens when a
place fails.

The same is available as a JSON Schema, [request.json](../src/pixpod/contract/schema/request.json).
Examples are in [tests/golden](../tests/golden).

## The reply

"""

_TIMINGS = """
`timings_ms` has the milliseconds of each phase that ran, in the order in which phases begin:
{phases}. A phase that did not run is absent.

JSON Schema: [reply.json](../src/pixpod/contract/schema/reply.json).

## Jobs that come again

Once all images of a job are in the deployment's bucket, the worker writes a small result file
beside them. The platform gives a job out again if its result was lost or its worker died. The job
is then answered from the result file: the same images with fresh links, `cost.gpu_ms` 0, and a
warning. The file is looked up while the job waits for its model and the GPU, for at most 2 seconds.
If the GPU is idle, the job may have begun by then; it ends at its next step. A file that the worker
did not write for this very job, or whose images are gone, is ignored. Inline images have a result
file if they went to the bucket because the reply was too large.

`idempotency_key` extends this to requests that you send twice: a job with the key of an earlier one
is answered from its result, whatever the ids of the two jobs are. If it asks for something else, it
is refused as `invalid_input`. Such a job is called `key-` and 32 hex digits in keys. Two jobs with
one key at the same time may both run; the links of both stay valid. Results are kept in the
deployment's bucket only, so the field is refused with any delivery other than `s3`.
They last as long as the files, and a worker of another version ignores them.

A job that failed because no place took its images is delivered from
[the spool](delivery.md#the-spool) when it comes again, whatever its delivery is.

The bucket's credentials need `s3:PutObject` and `s3:GetObject` below `PIXPOD_S3_PREFIX`. Without
`s3:ListBucket`, AWS denies access to a file that does not exist; the worker takes that as absent.

## Find out what is served

A job whose input is `{{"describe": true}}` is answered without the GPU. The reply has {describe}.

## Errors

A job that fails has the error `"<code>: <text>"`. A payload that does not fit is refused before
any GPU time is spent. The text is then JSON and lists all problems at once:

```json
{{"problems": [
  {{"field": "width", "value": 1000, "accepted": "a multiple of 16 for flux-dev",
    "hint": "nearest are 992 and 1008"}}
]}}
```

`field` is a path in the payload: `seed`, `output.quality`, or `seed[1]` for an element of a list.

"""


def render() -> str:
    """Return the text of the page."""
    return (
        _REQUEST
        + table(("field", "type", "default", "limits", "description"), _request_rows())
        + _BESIDE
        + table(("field", "type", "description"), _reply_rows())
        + _TIMINGS.format(
            phases=code(TimingsReply.model_fields), describe=code(DescribeReply.model_fields)
        )
        + table(("code", "who must act", "when"), _error_rows())
        + generated_from("src/pixpod/contract", "src/pixpod/errors.py")
    )


def _request_rows() -> Iterator[tuple[str, ...]]:
    schema = json_schemas()["request.json"]
    for name, field in _flatten(schema):
        given = _resolve(field, schema)
        text = field.get("description", "")
        yield f"`{name}`", _type(given), _default(name, text, schema), _limits(given), text


def _flatten(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield fields with their paths. Any: a JSON Schema."""
    for name, field in schema["properties"].items():
        if name not in OBJECTS or "description" in field:
            yield name, field
        if name in OBJECTS:
            nested = schema["$defs"][OBJECTS[name].__name__]["properties"]
            yield from ((f"{name}.{inner}", each) for inner, each in nested.items())
        if name in LISTS:
            nested = schema["$defs"][LISTS[name].__name__]["properties"]
            yield from ((f"{name}[].{inner}", each) for inner, each in nested.items())


def _resolve(field: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the forms that a field may have, without null. Any: a JSON Schema."""
    forms: list[Mapping[str, Any]] = []
    for form in field.get("anyOf", [field]):
        if "anyOf" in form:
            forms += _resolve(form, schema)
        elif "$ref" in form:
            forms.append(schema["$defs"][form["$ref"].rpartition("/")[2]])
        elif "items" in form:
            forms.append({**form, "items": _resolve(form["items"], schema)})
        elif form.get("type") != "null":
            forms.append(form)
    return forms


_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "object",
}


def _type(forms: list[Mapping[str, Any]]) -> str:
    names = []
    for form in forms:
        if "enum" in form:
            names.append("one of " + code(form["enum"]))
            continue
        kinds = [form["type"]] if isinstance(form["type"], str) else form["type"]
        kind = next(each for each in kinds if each != "null")
        names.append(_list(form["items"]) if kind == "array" else _TYPES[kind])
    return " or ".join(names)


def _list(items: list[Mapping[str, Any]]) -> str:
    names = [_type([form]).removeprefix("one of ") + "s" * ("enum" not in form) for form in items]
    return "list of " + " or ".join(names)


def _limits(forms: list[Mapping[str, Any]]) -> str:
    form = forms[0]
    low, high = form.get("minimum", form.get("exclusiveMinimum")), form.get("maximum")
    limits = []
    if "exclusiveMaximum" in form:
        limits.append(f"above {low:g} and below {form['exclusiveMaximum']:g}")
    elif low is not None and high is not None:
        limits.append(f"{low} to {high}" if low != high else str(low))
    elif low is not None:
        limits.append(f"{'above' if 'exclusiveMinimum' in form else 'at least'} {low:g}")
    if "maxLength" in form:
        limits.append(f"at most {form['maxLength']} characters")
    if form.get("pattern") in PATTERNS:
        limits.append(PATTERNS[form["pattern"]])
    return "; ".join(limits)


def _default(name: str, description: str, schema: Mapping[str, Any]) -> str:
    """Return the default, which a description states as `... unless given`."""
    if name in schema["required"]:
        return "required"
    if name in {field.name for field in fields(Defaults)}:
        return "the model's"
    found = re.search(r"(?:^|[;.] )([^;.]*?),? unless given", description)
    return found[1][0].lower() + found[1][1:] if found else "not set"


def _reply_rows() -> Iterator[tuple[str, ...]]:
    """Yield fields of the reply, each object before its fields."""
    definitions = json_schemas()["reply.json"]["$defs"]
    for name, field in definitions["Reply"]["properties"].items():
        path = f"{name}[]" if field.get("type") == "array" else name
        item = field.get("items", field)
        item = next((form for form in item.get("anyOf", ()) if "$ref" in form), item)
        if "$ref" not in item or name == "timings_ms":
            kind = "object" if "$ref" in item else _type(_resolve(field, {}))
            yield f"`{name}`", kind, field.get("description", "")
            continue
        part = definitions[item["$ref"].rpartition("/")[2]]
        yield f"`{path}`", "object", _one_line(part["description"])
        for inner, each in part["properties"].items():
            text = each.get("description", "")
            yield f"`{path}.{inner}`", _type(_resolve(each, {})), text


def _one_line(text: str) -> str:
    return " ".join(text.split())


_ACTORS = {
    Fault.CALLER: "the caller",
    Fault.DEPLOYMENT: "the owner of the endpoint",
    Fault.HOST: "nobody: send the job again",
}


def _error_rows() -> Iterator[tuple[str, ...]]:
    for error in coded_errors():
        actor = "nobody: the worker is replaced" if error.refresh_worker else _ACTORS[error.fault]
        yield f"`{error.code}`", actor, (inspect.getdoc(error) or "").partition("\n")[0]


def coded_errors() -> list[type[WorkerError]]:
    """Return all errors with a code, those of callers first."""
    return sorted(_subclasses(WorkerError), key=lambda error: list(Fault).index(error.fault))


def _subclasses(error: type[WorkerError]) -> Iterator[type[WorkerError]]:
    """Yield all errors with a code."""
    for each in error.__subclasses__():
        if each.__module__ == error.__module__:
            if "code" in vars(each):
                yield each
            yield from _subclasses(each)
