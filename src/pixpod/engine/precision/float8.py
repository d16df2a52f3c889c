"""Weights in float8 as torchao's class holds them, without torchao's packages of quantisation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchao.float8.inference import Float8MMConfig
from torchao.quantization.granularity import PerRow, PerTensor
from torchao.quantization.quantize_.common import KernelPreference
from torchao.quantization.quantize_.workflows.float8.float8_tensor import (
    Float8Tensor,
    QuantizeTensorToFloat8Kwargs,
)

LEAST_ACTIVATION = 1e-12
"""Largest value that a row of activations has at least for its scale: that of a row of zeros, as
padding is, would be 0, and the row not a number.
"""

_CLASSES: Mapping[str, Any] = {
    each.__name__: each
    for each in (
        Float8Tensor,
        Float8MMConfig,
        QuantizeTensorToFloat8Kwargs,
        KernelPreference,
        PerRow,
        PerTensor,
    )
}
"""Classes that the description of a float8 tensor may name. Any: torchao has no types."""


def tensor_from_description(described: Mapping[str, Any]) -> torch.Tensor:
    """Return the tensor that torchao's header describes, as its `object_from_dict` does.

    `described` has the parts, which are tensors, in its `_data`. Any: JSON. Tensors of other
    classes need torchao's packages, which takes a second. Raises ValueError or KeyError if the
    description is not torchao's.
    """
    if described["_type"] != Float8Tensor.__name__:
        from torchao.prototype.safetensors.safetensors_utils import object_from_dict

        other: torch.Tensor = object_from_dict(dict(described))
        return other
    tensor = _decode(described)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _decode(value: object) -> object:
    """Return what an entry stands for, which is JSON or a tensor."""
    if isinstance(value, list):
        return [_decode(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    kind, data = value["_type"], value["_data"]
    if kind == "torch.dtype":
        return getattr(torch, data)
    if kind not in _CLASSES:
        raise ValueError(f"class {kind!r}: expected one of {', '.join(_CLASSES)}")
    if isinstance(data, str):  # the name of a member of an enum
        return _CLASSES[kind][data]
    return _CLASSES[kind](**{name: _decode(each) for name, each in data.items()})


def holds_float8(module: nn.Module) -> bool:
    return any(isinstance(parameter, Float8Tensor) for parameter in module.parameters())


def weight_only(weight: Float8Tensor) -> torch.Tensor:
    """Return a tensor with the same values for which activations stay 16-bit."""
    made: torch.Tensor = Float8Tensor(
        weight.qdata,
        weight.scale,
        block_size=weight.block_size,
        mm_config=weight.mm_config,
        act_quant_kwargs=None,
        kernel_preference=weight.kernel_preference,
        dtype=weight.dtype,
    )
    return made


def computes_float8(device: torch.device) -> bool:
    """Return whether a product by rows in float8 works on this GPU with this torch: some builds
    send it to a library that refuses it (pytorch#192707). `gpus.toml` lists the GPUs that may.
    """
    try:
        with torch.inference_mode():
            weight = Float8Tensor.from_hp(
                torch.ones(64, 64, device=device, dtype=torch.bfloat16),
                granularity=PerRow(),
                mm_config=Float8MMConfig(use_fast_accum=True),
                act_quant_kwargs=QuantizeTensorToFloat8Kwargs(
                    granularity=PerRow(), hp_value_lb=LEAST_ACTIVATION
                ),
            )
            activations = torch.ones(32, 64, device=device, dtype=torch.bfloat16)
            product = nn.functional.linear(activations, weight)
            return bool(torch.isfinite(product).all().item())
    except (RuntimeError, AssertionError):
        return False
