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
"""Order of top-level modules in a forward pass, for classes that create them in another order.

Other modules come after those, in the order in which they are created.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """The stored format of a component: its type, and whether its Linear layers are float8 instead.

    `is_adaln_float8` is for a FLUX transformer's modulation layers.
    """

    dtype: torch.dtype
    is_float8: bool = False
    is_adaln_float8: bool = True


def storage_of(family: FamilySpec, plan: QuantizationPlan, component: str) -> Storage:
    """Return the format in which a plan stores a component of a pipeline."""
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

    spec: ComponentSpec
    config: Config
    storage: Storage
    tensors: tuple[PlannedTensor, ...]
    float8_names: frozenset[str]
    metadata: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    def store(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parts of a tensor, in the component's type."""
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
    module = build_on_meta(component, config)
    order = _ORDER.get(component.class_name, ())
    float8_layers = (
        _float8_layers(module, storage, quantization) if storage.is_float8 else frozenset()
    )
    planner = Planner()
    planned = [
        planner.plan(key, _cast(tensor, storage.dtype), key in float8_layers)
        for key, tensor in in_execution_order(_untied(module), order).items()
    ]
    return Component(
        spec=component,
        config=_stored_config(component.library, config, storage),
        storage=storage,
        tensors=tuple(planned),
        float8_names=frozenset(tensor.name for tensor in planned if len(tensor.parts) > 1),
        metadata={"format": "pt"} | (dict(planner.metadata()) if storage.is_float8 else {}),
    )


def build_on_meta(component: ComponentSpec, config: Config) -> nn.Module:
    """Return a component of this config without weights."""
    is_diffusers = component.library == "diffusers"
    # Any: the classes of both libraries have no types
    model_class: Any = getattr(diffusers if is_diffusers else transformers, component.class_name)
    with torch.device("meta"):
        module: nn.Module = (
            model_class.from_config(config)
            if is_diffusers
            else model_class(model_class.config_class.from_dict(config))
        )
    return module


def in_execution_order(
    tensors: Mapping[str, torch.Tensor], order: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Sort tensors by the first prefix of `order` that fits, and else keep their order."""

    def place(name: str) -> int:
        fits = (number for number, prefix in enumerate(order) if name.startswith(f"{prefix}."))
        return next(fits, len(order))

    return {name: tensors[name] for name in sorted(tensors, key=place)}


def _untied(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the `state_dict` without second names of the same parameter."""
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


def _stored_config(library: str, config: Config, storage: Storage) -> Config:
    """Return the config that stock `from_pretrained` needs; shards' headers name float8 layers."""
    stored = {key: value for key, value in config.items() if not key.startswith("_name")}
    if library == "transformers":
        stored = {key: value for key, value in stored.items() if key != "torch_dtype"}
        stored |= {"dtype": str(storage.dtype).removeprefix("torch.")}
    if storage.is_float8:
        quantizer = TorchAoConfig if library == "diffusers" else TransformersTorchAoConfig
        stored["quantization_config"] = quantizer(float8_dynamic_recipe()).to_dict()
    return stored
