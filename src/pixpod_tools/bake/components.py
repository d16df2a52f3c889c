"""The parts of a pipeline that have weights: their classes, configs and tensors in order.

Modules are built on the meta device only; no weights are read here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from diffusers import TorchAoConfig
from torch import nn
from transformers import TorchAoConfig as TransformersTorchAoConfig

from pixpod.engine.loading.components import DTYPE
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.engine.precision.quantization import (
    float8_dynamic_recipe,
    linear_layers,
    token_layers,
)
from pixpod.families import ComponentSpec, FamilySpec, Precision, QuantizationSpec
from pixpod_tools.bake.parts import Planner, float8_parts
from pixpod_tools.bake.shards import PlannedTensor

Config = dict[str, Any]
"""The JSON of a `config.json`, hence Any."""

_Class = Any
"""A class of diffusers or transformers, which have no types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentClass:
    """How a class of diffusers or transformers is built, named on disk and run through.

    `order` lists top-level modules as a forward pass meets them, where that is not the order
    in which the class makes them; what it does not name comes where it is made, after those.
    """

    model_class: _Class
    library: str
    stem: str
    order: tuple[str, ...] = ()


_ORDER: Mapping[str, tuple[str, ...]] = {
    "FluxTransformer2DModel": (
        *("x_embedder", "time_text_embed", "context_embedder"),
        *("transformer_blocks", "single_transformer_blocks", "norm_out", "proj_out"),
    ),
    "UNet2DConditionModel": (
        *("time_embedding", "add_embedding", "conv_in", "down_blocks", "mid_block"),
        *("up_blocks", "conv_norm_out", "conv_out"),
    ),
    "AutoencoderKL": (
        *("post_quant_conv", "decoder.conv_in", "decoder.mid_block", "decoder"),
        *("encoder", "quant_conv"),
    ),
}
"""Order of top-level modules in a forward pass, for classes that make them in another order."""

_LIBRARIES = {
    "diffusers": (diffusers, "diffusion_pytorch_model"),
    "transformers": (transformers, "model"),
}


def class_of(component: ComponentSpec) -> ComponentClass:
    """Return the class of a family's component."""
    library, stem = _LIBRARIES[component.library]
    return ComponentClass(
        model_class=getattr(library, component.class_name),
        library=component.library,
        stem=stem,
        order=_ORDER.get(component.class_name, ()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How a component is stored: its type, and whether its Linear layers are float8 instead.

    `is_adaln_float8` is for a FLUX transformer's modulation layers.
    """

    dtype: torch.dtype
    is_float8: bool = False
    is_adaln_float8: bool = True


def storage_of(family: FamilySpec, plan: QuantizationPlan, component: str) -> Storage:
    """Return how a plan stores a component of a pipeline."""
    float8 = Precision.FLOAT8_DYNAMIC
    precisions = {family.denoiser: plan.precision}
    if plan.precision is float8 and family.large_text_encoder and plan.t5:
        precisions[family.large_text_encoder] = plan.t5
    return Storage(
        dtype=DTYPE[plan.precision],
        is_float8=precisions.get(component) is float8,
        is_adaln_float8=plan.adaln is float8,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A component as it will be stored. `metadata` goes into each shard's header."""

    name: str
    kind: ComponentClass
    config: Config
    storage: Storage
    tensors: tuple[PlannedTensor, ...]
    float8_names: frozenset[str]
    metadata: Mapping[str, str]

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    def store(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """A tensor in the component's type as its parts."""
        return float8_parts(name, tensor) if name in self.float8_names else {name: tensor}


def plan_component(
    component: ComponentSpec,
    config: Config,
    storage: Storage,
    quantization: QuantizationSpec | None,
) -> Component:
    """Plan the files of a component without reading any.

    Tied weights are stored once, under the first of their names.
    """
    kind = class_of(component)
    module = build_on_meta(kind, config)
    float8_layers = (
        _float8_layers(module, storage, quantization) if storage.is_float8 else frozenset()
    )
    planner = Planner()
    planned = [
        planner.plan(key, _cast(tensor, storage.dtype), key in float8_layers)
        for key, tensor in in_execution_order(_untied(module), kind.order).items()
    ]
    return Component(
        name=component.name,
        kind=kind,
        config=_stored_config(kind, config, storage),
        storage=storage,
        tensors=tuple(planned),
        float8_names=frozenset(tensor.name for tensor in planned if len(tensor.parts) > 1),
        metadata={"format": "pt"} | (dict(planner.metadata()) if storage.is_float8 else {}),
    )


def build_on_meta(kind: ComponentClass, config: Config) -> nn.Module:
    with torch.device("meta"):
        if kind.library == "diffusers":
            module = kind.model_class.from_config(config)
        else:
            module = kind.model_class(kind.model_class.config_class.from_dict(config))
    assert isinstance(module, nn.Module)
    return module


def in_execution_order(
    tensors: Mapping[str, torch.Tensor], order: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Sorted by the first prefix of `order` that fits; otherwise as they come."""

    def place(name: str) -> int:
        fits = (number for number, prefix in enumerate(order) if name.startswith(f"{prefix}."))
        return next(fits, len(order))

    return {name: tensors[name] for name in sorted(tensors, key=place)}


def _untied(module: nn.Module) -> dict[str, torch.Tensor]:
    """`state_dict` without second names of the same parameter."""
    first = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: value for name, value in module.state_dict().items() if name in first}


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _float8_layers(
    module: nn.Module, storage: Storage, quantization: QuantizationSpec | None
) -> frozenset[str]:
    """Return the weights that are to be float8, if their sizes allow it."""
    layers = linear_layers if storage.is_adaln_float8 else token_layers
    is_float8 = layers(quantization)
    return frozenset(
        f"{name}.weight" for name, layer in module.named_modules() if is_float8(layer, name)
    )


def _stored_config(kind: ComponentClass, config: Config, storage: Storage) -> Config:
    """What stock `from_pretrained` needs; which layers are float8 is in the shards' headers."""
    stored = {key: value for key, value in config.items() if not key.startswith("_name")}
    if kind.library == "transformers":
        stored = {key: value for key, value in stored.items() if key != "torch_dtype"}
        stored |= {"dtype": str(storage.dtype).removeprefix("torch.")}
    if storage.is_float8:
        quantizer = TorchAoConfig if kind.library == "diffusers" else TransformersTorchAoConfig
        stored["quantization_config"] = quantizer(float8_dynamic_recipe()).to_dict()
    return stored
