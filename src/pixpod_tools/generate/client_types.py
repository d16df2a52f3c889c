"""Render the modules of `pixpod_client` that repeat the contract: replies and errors by code."""

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pixpod.errors import Fault
from pixpod_tools.generate.json_schema import json_schemas
from pixpod_tools.generate.payload_page import coded_errors

_WIDTH = 100

_REPLIES = '''\
"""Types of replies. Generated from the JSON Schema of replies by `scripts/generate`."""

from typing import Literal, NotRequired, TypedDict


'''

_ERRORS = '''\
"""Errors of jobs by code. Generated from src/pixpod/errors.py by `scripts/generate`."""

from collections.abc import Mapping

from pixpod_client.errors import CallerError, DeploymentError, HostError, JobFailed

'''

_BY_CODE = '''

def job_error(text: str) -> JobFailed:
    """Return the error for the text of a failed job, "<code>: <text>"."""
    return BY_CODE.get(text.partition(":")[0], JobFailed)(text)
'''

_BASES = {
    Fault.CALLER: "CallerError",
    Fault.DEPLOYMENT: "DeploymentError",
    Fault.HOST: "HostError",
}

_TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


def render_replies() -> str:
    """Return the text of `pixpod_client/replies.py`."""
    schemas = json_schemas()["reply.json"]["$defs"]
    return _REPLIES + "\n\n".join(_typed_dict(schema) for schema in schemas.values())


def render_errors() -> str:
    """Return the text of `pixpod_client/job_errors.py`."""
    errors = list(coded_errors())
    classes = [
        f"\nclass {error.__name__}({_BASES[error.fault]}):\n"
        f'    """{(inspect.getdoc(error) or "").partition(chr(10))[0]}"""\n\n'
        f'    code = "{error.code}"\n'
        for error in errors
    ]
    table = "".join(f'    "{error.code}": {error.__name__},\n' for error in errors)
    mapping = f"\nBY_CODE: Mapping[str, type[JobFailed]] = {{\n{table}}}\n"
    return _ERRORS + "\n".join(classes) + "\n" + mapping + _BY_CODE


def _typed_dict(schema: Mapping[str, Any]) -> str:
    """Return a class for an object of the schema. Any: a JSON Schema."""
    return (
        f"class {schema['title']}(TypedDict):\n"
        + _docstring(schema["description"])
        + "\n"
        + "".join(_fields(schema))
    )


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    for name, field in schema["properties"].items():
        kind = _type(field)
        yield f"    {name}: {kind if name in schema['required'] else f'NotRequired[{kind}]'}\n"
        if text := field.get("description"):
            yield _docstring(text)


def _type(field: Mapping[str, Any] | bool) -> str:
    if isinstance(field, bool):
        return "object"
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    if "anyOf" in field:
        return " | ".join(map(_type, field["anyOf"]))
    if "const" in field:
        return f"Literal[{field['const']!r}]"
    if field["type"] == "array":
        return f"list[{_type(field['items'])}]"
    if field["type"] == "object":
        return f"dict[str, {_type(field['additionalProperties'])}]"
    kinds = [field["type"]] if isinstance(field["type"], str) else field["type"]
    return " | ".join(_TYPES[kind] for kind in kinds)


def _docstring(text: str) -> str:
    """Return a docstring, wrapped and indented by four."""
    first, *rest = text.split("\n\n")
    if not rest and len(first) <= _WIDTH - 10:
        return f'    """{first}"""\n'
    parts = [" ".join(first.split()), *(" ".join(each.split()) for each in rest)]
    wrapped = ["\n".join(textwrap.wrap(part, _WIDTH - 4)) for part in parts]
    body = textwrap.indent("\n\n".join(wrapped), "    ")
    return f'    """{body.lstrip()}\n    """\n'
