"""Hypothesis strategies for jobs, from the published JSON Schema: valid ones, and broken ones."""

import json
from importlib import resources

from hypothesis import strategies as st
from support.factories import CATALOG

from pixpod.stacks import PRESETS

REQUEST = json.loads(
    resources.files("pixpod.contract").joinpath("schema/request.json").read_text(encoding="utf-8")
)
NAMES = {
    "model": st.sampled_from(sorted(CATALOG)),
    "scheduler": st.sampled_from(
        sorted({s for m in CATALOG.values() for s in m.family.schedulers})
    ),
    "stack": st.sampled_from(sorted(PRESETS)),
    "webhook_url": st.sampled_from(
        [
            "https://app.example/hook?token=pomegranate",
            "https://app.example:8443/",
            "https://b\u00fccher.example/\u00e9",
            "https://93.184.216.34/",
            "https://app.example/" + 8_000 * "x",
        ]
    )
    | st.sampled_from(["http://app.example/", "https://10.0.0.1/", "https://app.example:22/", ""]),
}
"""Values that the schema cannot know."""

MAX_FIELDS = 6
TEXT = st.text(st.characters(), max_size=30)

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 0, 2**53, 1e308])
    | st.floats()
    | TEXT
    | st.sampled_from(["\ud800", "\0", "https://10.0.0.1/", "file:///etc/passwd"])
    | st.just("x").map(lambda text: 20_000 * text),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=6,
)
"""JSON as Python's parser takes it, so NaN and halves of surrogate pairs, too."""


def jobs():
    """Jobs as the platform hands them over. Many break a rule of the schema or have a webhook."""
    valid = _value(REQUEST)
    field = st.sampled_from(sorted(REQUEST["properties"])) | TEXT
    broken = st.builds(lambda given, name, value: {**given, name: value}, valid, field, ANYTHING)
    hooked = st.builds(
        lambda given, url: {**given, "webhook_url": url}, valid, NAMES["webhook_url"]
    )
    short = st.builds(
        lambda model, url: {"model": model, "prompt": "a red circle", "webhook_url": url},
        NAMES["model"],
        NAMES["webhook_url"],
    )
    given = valid | broken | hooked | short
    plain = st.builds(lambda id, given: {"id": id, "input": given}, _ids(), given)
    odd = st.fixed_dictionaries(
        {},
        optional={
            "id": ANYTHING,
            "input": ANYTHING | valid,
            "s3Config": ANYTHING,
            "policy": ANYTHING,
            "webhook": ANYTHING,
        },
    )
    return st.one_of(plain, plain, plain, odd)


def _ids():
    return st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


def _value(schema):
    if "$ref" in schema:
        return _value(REQUEST["$defs"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return st.one_of(*map(_value, schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return st.one_of(*(_BY_TYPE[kind](schema) for kind in kinds))


def _object(schema):
    """Required fields and some of the others; names of headers where the schema has no fields."""
    if "properties" not in schema:
        names = st.sampled_from(["content-type", "X-Amz-Meta-A", "x-ms-blob-type", "host"])
        return st.dictionaries(names, TEXT, max_size=3)
    fields = {
        name: NAMES[name] if name in NAMES else _value(each)
        for name, each in schema["properties"].items()
    }
    required = schema.get("required", [])
    others = st.lists(st.sampled_from(sorted(fields)), max_size=MAX_FIELDS, unique=True)
    return others.flatmap(
        lambda chosen: st.fixed_dictionaries({name: fields[name] for name in [*required, *chosen]})
    )


def _number(schema):
    lowest = schema.get("minimum", schema.get("exclusiveMinimum", -1))
    highest = schema.get("maximum", 2_000)
    usual = st.sampled_from([each for each in (1, 2, 64, 128, 512, 1_024) if each <= highest])
    if "integer" in schema["type"]:
        return st.integers(lowest, highest) | usual
    return st.floats(lowest, highest) | st.integers(lowest, highest)


_BY_TYPE = {
    "object": _object,
    "array": lambda schema: st.lists(_value(schema["items"]), min_size=1, max_size=5),
    "string": lambda schema: st.text(min_size=1, max_size=30) | st.just("a red circle"),
    "integer": _number,
    "number": _number,
    "boolean": lambda schema: st.booleans(),
    "null": lambda schema: st.none(),
}
