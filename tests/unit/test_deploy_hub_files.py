"""RunPod's Hub takes the files in .runpod as they are: their shape, and what they promise."""

import json
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from pixpod.settings import VARIABLES, Settings
from pixpod_tools.deploy.build import disk_gb
from pixpod_tools.deploy.configuration import Configuration, Mode
from pixpod_tools.deploy.pools import load_pools

ROOT = Path(__file__).resolve().parents[2]
HUB = json.loads((ROOT / ".runpod/hub.json").read_text(encoding="utf-8"))
TESTS = json.loads((ROOT / ".runpod/tests.json").read_text(encoding="utf-8"))


def closed(properties, *required):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


TEXT = {"type": "string", "minLength": 1}
VERSIONS = {"type": "array", "minItems": 1, "items": {"pattern": r"^\d+\.\d+$"}}
INPUT = closed(
    {
        "name": TEXT,
        "type": {"enum": ["string", "huggingface", "number", "boolean"]},
        "description": TEXT,
        "default": {"type": ["string", "number", "boolean"]},
        "required": {"type": "boolean"},
        "advanced": {"type": "boolean"},
        "options": {
            "type": "array",
            "items": closed({"label": TEXT, "value": TEXT}, "label", "value"),
        },
        "min": {"type": "number"},
        "max": {"type": "number"},
        "trueValue": TEXT,
        "falseValue": TEXT,
    },
    "name",
    "type",
    "description",
    "default",
)
HUB_SCHEMA = closed(
    {
        "title": TEXT,
        "description": TEXT,
        "type": {"const": "serverless"},
        "category": {"enum": ["audio", "embedding", "language", "video", "image"]},
        "iconUrl": TEXT,
        "config": closed(
            {
                "runsOn": {"const": "GPU"},
                "containerDiskInGb": {"type": "integer", "minimum": 1},
                "gpuCount": {"type": "integer", "minimum": 1},
                "gpuIds": TEXT,
                "allowedCudaVersions": VERSIONS,
                "presets": {
                    "type": "array",
                    "items": closed({"name": TEXT, "defaults": {"type": "object"}}, "name"),
                },
                "env": {
                    "type": "array",
                    "items": {
                        "oneOf": [
                            closed({"key": TEXT, "value": TEXT}, "key", "value"),
                            closed({"key": TEXT, "input": INPUT}, "key", "input"),
                        ]
                    },
                },
            },
            "runsOn",
            "containerDiskInGb",
            "gpuCount",
            "gpuIds",
        ),
    },
    "title",
    "description",
    "type",
    "category",
    "config",
)
TESTS_SCHEMA = closed(
    {
        "tests": {
            "type": "array",
            "minItems": 1,
            "items": closed(
                {"name": TEXT, "input": {"type": "object"}, "timeout": {"type": "integer"}},
                "name",
                "input",
            ),
        },
        "config": closed(
            {
                "gpuTypeId": TEXT,
                "gpuCount": {"type": "integer"},
                "env": {
                    "type": "array",
                    "items": closed({"key": TEXT, "value": TEXT}, "key", "value"),
                },
                "allowedCudaVersions": VERSIONS,
            },
            "gpuTypeId",
            "gpuCount",
        ),
    },
    "tests",
    "config",
)

ENTRIES = {entry["key"]: entry["input"] for entry in HUB["config"]["env"]}


def default_of(entry):
    if entry["type"] == "boolean":
        return entry["trueValue" if entry["default"] else "falseValue"]
    return str(entry["default"])


DEFAULTS = {key: default_of(entry) for key, entry in ENTRIES.items()}


@pytest.mark.parametrize(
    ("document", "schema"),
    [
        pytest.param(HUB, HUB_SCHEMA, id="hub.json"),
        pytest.param(TESTS, TESTS_SCHEMA, id="tests.json"),
    ],
)
def test_file_has_the_documented_shape(document, schema):
    errors = Draft202012Validator(schema).iter_errors(document)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_each_variable_is_a_setting():
    tested = {entry["key"] for entry in TESTS["config"]["env"]}
    assert ENTRIES.keys() | tested <= VARIABLES.keys()


@pytest.mark.parametrize("preset", HUB["config"]["presets"], ids=lambda preset: preset["name"])
def test_preset_changes_variables_that_are_offered_to_values_that_can_be_chosen(preset):
    for key, value in preset["defaults"].items():
        assert value in [option["value"] for option in ENTRIES[key]["options"]]


def values_of(entry):
    if entry["type"] == "boolean":
        return [entry["trueValue"], entry["falseValue"]]
    if entry["type"] == "number":
        return [str(entry["min"]), str(entry["max"])]
    return [option["value"] for option in entry.get("options", [])]


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key in ENTRIES for value in values_of(ENTRIES[key])]
)
def test_worker_takes_what_can_be_chosen(key, value):
    bucket = {
        "PIXPOD_S3_BUCKET": "images",
        "PIXPOD_S3_ACCESS_KEY_ID": "key",
        "PIXPOD_S3_SECRET_ACCESS_KEY": "secret",
    }
    Settings.from_env({**DEFAULTS, **bucket, key: value})


def test_worker_takes_the_defaults():
    assert Settings.from_env(DEFAULTS).s3 is None


def test_cuda_floor_is_that_of_the_deploy_script():
    for versions in (HUB["config"]["allowedCudaVersions"], TESTS["config"]["allowedCudaVersions"]):
        lowest = min(tuple(map(int, version.split("."))) for version in versions)
        assert ".".join(map(str, lowest)) == Configuration(name="x", image="x").min_cuda


def test_pools_are_known():
    assert set(HUB["config"]["gpuIds"].split(",")) <= {pool.id for pool in load_pools()}


def test_disk_holds_the_software():
    assert HUB["config"]["containerDiskInGb"] == disk_gb(Mode.CACHED_MODEL, 0)


def test_no_model_needs_a_token_to_build():
    """The Hub's builds have no secrets; what is baked into its image ships with the source."""
    manifest = tomllib.loads((ROOT / "model_cache/manifest.toml").read_text(encoding="utf-8"))
    baked = set(manifest.get("models", manifest))
    tested = {test["input"]["model"] for test in TESTS["tests"]}
    assert tested <= set(DEFAULTS["PIXPOD_MODELS"].split(",")) <= baked
