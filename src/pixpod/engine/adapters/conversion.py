"""Converts the names of LoRA files to those of a model's own layers, by diffusers' converters.

They leave out what they do not know, some of it with a message in the log. So layers are counted
before and after: a file is converted as a whole or refused.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import torch
from diffusers.utils.state_dict_utils import (
    DIFFUSERS_OLD_TO_PEFT,
    DIFFUSERS_TO_PEFT,
    convert_state_dict,
    convert_unet_state_dict_to_peft,
)

from pixpod.engine.model import LoadedModel

Tensors = dict[str, torch.Tensor]
Halves = dict[str, Tensors]
"""`A` and `B` of layers by the full name of a layer, such as `unet.mid_block.attentions.0.proj_in`.
"""

METADATA = "lora_adapter_metadata"
"""Key of what diffusers writes about a LoRA's scale into the header of its file."""

_HALF = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])(\.default)?\.weight")
_IS_DOWN = re.compile(r".+(\blora_A(\.default)?|\bdown|lora_down)\.weight")
_FUSED = {re.compile(r"(.*[._])?qkv(_lora\d?)?"): 3, re.compile(r"(.*[._])?linear1"): 4}
"""Layers of original checkpoints that diffusers has as several ones, and their number."""

_TEXT_NAMES = {**DIFFUSERS_OLD_TO_PEFT, **DIFFUSERS_TO_PEFT}


class NotConverted(Exception):
    """A file has names that cannot be converted for this model. The text says which, if known."""


def convert_names(tensors: Tensors, metadata: Mapping[str, str], model: LoadedModel) -> Halves:
    """Return the halves of all layers, with the scale of the file in them. Raises NotConverted."""
    num_layers = sum(map(_num_layers, filter(_IS_DOWN.fullmatch, tensors)))
    family = model.spec.family
    options = {} if family.denoiser == "transformer" else {"unet_config": model.denoiser.config}
    pipeline_class = getattr(diffusers, family.default_pipeline)
    try:
        found = pipeline_class.lora_state_dict(with_alphas(tensors), **options)
    # diffusers' converters raise any of these for names and shapes that they do not know
    except (ValueError, KeyError, IndexError, RuntimeError, NotImplementedError) as exc:
        raise NotConverted from exc
    converted: Tensors = found[0] if isinstance(found, tuple) else found
    texts = {name: each for name, each in converted.items() if name.startswith("text_encoder")}
    others = {name: each for name, each in converted.items() if name not in texts}
    named = {**convert_state_dict(texts, _TEXT_NAMES), **_to_peft(others)}
    halves: Halves = {}
    for name, tensor in named.items():
        half = _HALF.fullmatch(name)
        if half is None:
            raise NotConverted(name)
        layer = _full_name(half["layer"], model)
        halves.setdefault(layer, {})[half["half"]] = tensor
    if len(halves) != num_layers:
        raise NotConverted
    for layer, factor in _factors(halves, metadata):
        halves[layer]["B"] = halves[layer]["B"] * factor
    return halves


def with_alphas(tensors: Tensors) -> Tensors:
    """Multiply each `alpha` into its layer: some converters forget it."""
    left = dict(tensors)
    for name in tensors:
        layer = name.removesuffix(".alpha")
        if layer == name:
            continue
        alpha = left.pop(name)
        for down, up in _HALVES:
            if layer + down in left and layer + up in left:
                rank = len(left[layer + down])
                left[layer + up] = left[layer + up] * (float(alpha) / rank)
    return left


_HALVES = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
)


def _num_layers(name: str) -> int:
    layer = re.sub(r"\.(lora_down|lora_A|lora_A\.default|lora\.down|down)\.weight$", "", name)
    return next((times for fused, times in _FUSED.items() if fused.fullmatch(layer)), 1)


def _to_peft(tensors: Tensors) -> Tensors:
    converted: Tensors = convert_unet_state_dict_to_peft(tensors)
    return {
        re.sub(r"\.lora\.(down|up)\.", _lower_or_upper, name): tensor
        for name, tensor in converted.items()
    }


def _lower_or_upper(found: re.Match[str]) -> str:
    return ".lora_A." if found[1] == "down" else ".lora_B."


def _full_name(layer: str, model: LoadedModel) -> str:
    """Return a layer's name with its component: the denoiser's may lack it."""
    component, _, inner = layer.partition(".")
    if component not in model.components:
        return f"{model.spec.family.denoiser}.{layer}"
    # transformers 5 has no `text_model` in some of its classes
    module = model.components[component]
    if inner.startswith("text_model.") and not hasattr(module, "text_model"):
        inner = inner.removeprefix("text_model.")
    return f"{component}.{inner}"


def _factors(halves: Halves, metadata: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    """Yield layers whose scale the header of the file says. Raises NotConverted."""
    if METADATA not in metadata:
        return
    try:
        facts = json.loads(metadata[METADATA])
        for layer, found in halves.items():
            component, _, inner = layer.partition(".")
            alpha = _by_layer(facts, component, inner, "lora_alpha", "alpha_pattern")
            if alpha is None or "A" not in found or "B" not in found:
                continue
            rank = len(found["A"])
            is_stable = facts.get(f"{component}.use_rslora", False)
            yield layer, float(alpha) / (math.sqrt(rank) if is_stable else rank)
    except (ValueError, TypeError, AttributeError) as exc:
        raise NotConverted(METADATA) from exc


def _by_layer(
    facts: Mapping[str, Any], component: str, layer: str, field: str, patterns: str
) -> float | None:
    """Return a value as PEFT finds it: by the end of the layer's name. Any: JSON."""
    named = facts.get(f"{component}.{patterns}") or {}
    for pattern, value in named.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            return float(value)
    value = facts.get(f"{component}.{field}")
    return None if value is None else float(value)
