"""How a FLUX transformer becomes FP8: the worker's recipe, and those that it is compared with."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerTensor

from pixpod.catalog import Precision
from pixpod.engine.precision.quantization import (
    convert,
    float8_dynamic,
    is_quantized,
    quantize_layers,
    sees_tokens,
)
from pixpod_bench.random_models import Quantize
from pixpod_bench.scenarios import Recipe


def _per_row(transformer: nn.Module, device: torch.device) -> None:
    convert(transformer, Precision.FLOAT8_DYNAMIC, device)


def _per_tensor(transformer: nn.Module, device: torch.device) -> None:
    """Not served: a scale over the whole batch lets an image's neighbours change it."""
    config = Float8DynamicActivationFloat8WeightConfig(
        granularity=PerTensor(), set_inductor_config=False
    )
    quantize_layers(transformer, config, is_quantized, device)


def _adaln_in_16_bits(transformer: nn.Module, device: torch.device) -> None:
    """As the profile `flux-dev-adaln16` is baked: layers with one row for each image stay."""
    quantize_layers(transformer, float8_dynamic(), sees_tokens, device)


def _fused_qkv(transformer: nn.Module, device: torch.device) -> None:
    """Three layers as one; the single ones are dropped, so that memory is that of one."""
    fused: Any = transformer  # diffusers has no types
    fused.fuse_qkv_projections()
    for module in transformer.modules():
        if getattr(module, "fused_projections", False):
            for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
                if hasattr(module, name):
                    delattr(module, name)
    _per_row(transformer, device)


QUANTIZE: Mapping[Recipe, Quantize] = {
    Recipe.PER_ROW: _per_row,
    Recipe.PER_TENSOR: _per_tensor,
    Recipe.ADALN_16: _adaln_in_16_bits,
    Recipe.FUSED_QKV: _fused_qkv,
}
