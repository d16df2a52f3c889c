"""Describes what a deployment serves, for clients that build their forms from it."""

import hashlib
from dataclasses import asdict
from importlib import resources
from typing import Any

import pixpod
from pixpod.catalog import ModelSpec
from pixpod.contract.rules import Capabilities
from pixpod.contract.types import API_VERSION, NOT_SUPPORTED, DescribeReply


def describe(capabilities: Capabilities) -> dict[str, Any]:
    """Return the reply to `{"describe": true}`. Any: a JSON document."""
    schema = resources.files("pixpod.contract").joinpath("schema/request.json").read_bytes()
    reply = DescribeReply.model_validate(
        {
            "api_version": API_VERSION,
            "version": pixpod.__version__,
            "request_schema_sha256": hashlib.sha256(schema).hexdigest(),
            "models": [_describe(spec, capabilities) for spec in capabilities.models.values()],
            "deliveries": capabilities.deliveries,
            "loras": sorted(capabilities.lora_names),
            "not_supported": sorted(NOT_SUPPORTED),
        }
    )
    return reply.model_dump(mode="json")


def _describe(spec: ModelSpec, capabilities: Capabilities) -> dict[str, object]:
    family = spec.family
    return {
        "name": spec.name,
        "family": family.name,
        "licence": spec.licence,
        "revision": spec.revision,
        "modes": sorted(family.pipelines),
        "qualities": capabilities.qualities[spec.name],
        "schedulers": list(family.schedulers),
        "prompt_fields": sorted(family.prompt_fields),
        "defaults": spec.defaults,
        "limits": {
            **asdict(spec.limits),
            "size_multiple_px": family.size_multiple_px,
            "max_loras": family.lora.max_files if family.lora else 0,
        },
    }
