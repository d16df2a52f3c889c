"""Describes what a deployment serves, for clients that build their forms from it."""

import hashlib
from dataclasses import asdict
from importlib import resources
from typing import Any

import pixpod
from pixpod.catalog import ModelSpec
from pixpod.contract.controls import types_of
from pixpod.contract.describe_reply import DescribeReply
from pixpod.contract.image_prompt import adapters_of
from pixpod.contract.preprocessing import preprocessors_of
from pixpod.contract.refiner import refiners_of
from pixpod.contract.rules import Capabilities
from pixpod.contract.scalars import API_VERSION
from pixpod.contract.upscale import upscalers_of
from pixpod.extras import ExtraSpec, extras_for
from pixpod.methods import pipelines_of


def describe(capabilities: Capabilities) -> dict[str, Any]:
    """Return the reply to `{"describe": true}`. Any: a JSON document."""
    extras = capabilities.extras
    schema = resources.files("pixpod.contract").joinpath("schema/request.json").read_bytes()
    reply = DescribeReply.model_validate(
        {
            "api_version": API_VERSION,
            "version": pixpod.__version__,
            "request_schema_sha256": hashlib.sha256(schema).hexdigest(),
            "models": [_describe(spec, capabilities) for spec in capabilities.models.values()],
            "extras": [_describe_extra(extra, capabilities) for extra in extras.values()],
            "deliveries": capabilities.deliveries,
            "loras": sorted(capabilities.lora_names),
            "safety": capabilities.safety,
            "stacks": list(capabilities.presets),
        }
    )
    return reply.model_dump(mode="json")


def _describe(spec: ModelSpec, capabilities: Capabilities) -> dict[str, object]:
    family = spec.family
    types = types_of(spec, capabilities.extras)
    return {
        "name": spec.name,
        "family": family.name,
        "licence": spec.licence,
        "revision": spec.revision,
        "modes": sorted(family.pipelines),
        "control_modes": sorted(pipelines_of(family, has_controls=True)) if types else [],
        "control_types": sorted(types),
        "preprocessed_types": sorted(types & preprocessors_of(spec, capabilities.extras).keys()),
        "refiners": refiners_of(spec, capabilities.extras),
        "image_prompts": [extra.name for extra in adapters_of(spec, capabilities.extras)],
        "upscales": sorted(upscalers_of(spec, capabilities.extras)),
        "qualities": capabilities.qualities[spec.name],
        "schedulers": list(spec.scheduler_specs),
        "step_counts": list(spec.step_counts),
        "prompt_fields": sorted(family.prompt_fields),
        "defaults": spec.defaults,
        "limits": {
            **asdict(spec.limits),
            "size_multiple_px": family.size_multiple_px,
            "max_loras": family.lora.max_files if family.lora else 0,
        },
    }


def _describe_extra(extra: ExtraSpec, capabilities: Capabilities) -> dict[str, object]:
    return {
        "name": extra.name,
        "kind": extra.kind,
        "family": extra.family.name if extra.family else None,
        "licence": extra.licence,
        "revision": extra.revision,
        "types": list(extra.types),
        "models": [
            spec.name
            for spec in capabilities.models.values()
            if extra in extras_for(spec, capabilities.extras)
        ],
    }
