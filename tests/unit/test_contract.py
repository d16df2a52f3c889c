"""The schemas that ship and the golden files: neither changes without being looked at."""

import json
from importlib import resources
from itertools import chain, combinations

import pytest
from jsonschema import Draft202012Validator
from support.bad_payloads import BAD_PAYLOADS
from support.factories import GOLDEN
from support.golden import golden_files

FILES = golden_files()
SHIPPED = resources.files("pixpod.contract").joinpath("schema")


def validator(name):
    return Draft202012Validator(json.loads(SHIPPED.joinpath(name).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def request_schema():
    return validator("request.json")


@pytest.fixture(scope="module")
def reply_schema():
    return validator("reply.json")


@pytest.mark.parametrize("name", ["request.json", "reply.json"])
def test_shipped_schema_is_a_json_schema(name):
    Draft202012Validator.check_schema(validator(name).schema)


def test_golden_folder_has_these_files_only():
    assert {path.name for path in GOLDEN.glob("*.json")} == FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_golden_file_is_exact(name):
    """Renew them as `support.golden` says, and read the diff."""
    assert json.loads((GOLDEN / name).read_text(encoding="utf-8")) == FILES[name]


@pytest.mark.parametrize("name", FILES)
def test_golden_file_follows_the_schema(name, request_schema, reply_schema):
    if name.startswith("request"):
        request_schema.validate(FILES[name]["job"]["input"])
    else:
        reply_schema.validate(FILES[name])


def test_examples_of_the_schema_follow_it(request_schema):
    examples = request_schema.schema["examples"]
    assert examples
    for example in examples:
        request_schema.validate(example)


def test_schema_describes_each_field(request_schema):
    nested = request_schema.schema["$defs"]["OutputInput"]["properties"]
    for name, field in (request_schema.schema["properties"] | nested).items():
        assert "description" in field or name == "output", name


BY_TYPE_ALONE = (
    "input empty",
    "unknown field",
    "nested unknown field",
    "prompt empty",
    "prompt blank",
    "prompt with NUL",
    "prompt too long",
    "prompt_2 empty",
    "width a string",
    "width a boolean",
    "width zero",
    "steps zero",
    "guidance negative",
    "seed negative",
    "seed 2^53",
    "seed an empty list",
    "seed a nested list",
    "api_version 2",
    "on_long_prompt unknown",
    "true_cfg_scale below 1",
    "format unknown",
    "quality 101",
    "key_prefix climbs",
    "key_prefix absolute",
    "key_prefix with a space",
    "key_prefix too long",
    "image a number",
    "strength above 1",
    "upscale 3",
    "upscale a text",
    "safety of another kind",
    "put_urls a text",
    "put_urls of numbers",
    "put_url with Host",
    "put_url no URL",
)
"""Bad payloads that need no knowledge of a model or a deployment to be seen as bad."""


@pytest.mark.parametrize("id", BY_TYPE_ALONE)
def test_schema_refuses_what_the_parser_refuses(id, request_schema):
    (bad,) = (bad for bad in BAD_PAYLOADS if bad.id == id)
    assert not request_schema.is_valid(bad.job["input"])


WAYS = {("url", "key"), ("path", "key"), ("key",), ("data",), ()}
"""Fields that tell where an image is, as stores answer."""


def test_schema_accepts_the_ways_of_delivery_and_no_others(reply_schema):
    names = ("url", "path", "data", "key")
    subsets = chain.from_iterable(combinations(names, count) for count in range(5))
    reply = json.loads(json.dumps(FILES["reply_put.json"]))
    image = dict(reply["images"][0])
    assert not set(names) & set(image)
    accepted = set()
    for present in subsets:
        reply["images"] = [image | dict.fromkeys(present, "text")]
        if reply_schema.is_valid(reply):
            accepted.add(present)
    assert accepted == WAYS


@pytest.mark.parametrize("name", ["url", "path", "data", "key"])
def test_schema_knows_that_absent_fields_are_never_null(reply_schema, name):
    reply = json.loads(json.dumps(FILES["reply_put.json"]))
    assert reply_schema.is_valid(reply)
    reply["images"][0][name] = None
    assert not reply_schema.is_valid(reply)
