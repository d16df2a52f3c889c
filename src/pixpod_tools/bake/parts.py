"""Stores a tensor as it is, or in float8 as torchao's parts: values and scales.

`torchao.prototype.safetensors` defines the names of the parts and their entries in a header.
"""

import json
from collections.abc import Mapping

import torch
from torch import nn
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

from pixpod.engine.precision.quantization import quantize_float8_dynamic
from pixpod_tools.bake.shards import PlannedTensor, StoredTensor

_CPU = torch.device("cpu")

_SLAB_ELEMENTS = 1 << 20
"""Elements that are quantised in one go. torchao's temporary tensors take ten times the memory of
these elements in 16 bits, and it is four times faster if they fit into a processor's cache."""

_SLAB_ROWS = 16
"""torchao quantises no weight whose sizes are not multiples of this."""

_ANY = "layer.weight"

_Key = tuple[torch.Size, torch.dtype, bool]


class Planner:
    """Plans tensors of a module on the meta device; calls torchao once for each shape."""

    def __init__(self) -> None:
        self._described: dict[str, str] = {}
        self._known: dict[_Key, tuple[dict[str, torch.Tensor], str]] = {}

    def plan(self, name: str, tensor: torch.Tensor, is_float8: bool) -> PlannedTensor:
        """Plan a tensor as one part, or as several in float8, which not all sizes allow."""
        key = (tensor.shape, tensor.dtype, is_float8)
        if key not in self._known:
            self._known[key] = _flatten(_float8(tensor) if is_float8 else tensor)
        parts, self._described[name] = self._known[key]
        return PlannedTensor(
            name=name,
            parts=tuple(
                StoredTensor(
                    name=_part_name(name, part), dtype=value.dtype, shape=tuple(value.shape)
                )
                for part, value in parts.items()
            ),
        )

    def metadata(self) -> Mapping[str, str]:
        """The metadata of torchao's header for all planned tensors."""
        return {**self._described, "tensor_names": json.dumps(list(self._described))}


def float8_parts(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the parts of a bfloat16 weight whose rows are a multiple of 16, made slab by slab.

    They have the same bits as if it were quantised at once, because each row has its own scale.
    """
    rows = _SLAB_ELEMENTS // tensor.shape[1] // _SLAB_ROWS * _SLAB_ROWS
    slabs = [_flatten(_float8(slab))[0] for slab in torch.split(tensor, max(_SLAB_ROWS, rows))]
    return {
        _part_name(name, part): _concatenate([slab[part] for slab in slabs]) for part in slabs[0]
    }


def _float8(weight: torch.Tensor) -> torch.Tensor:
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    quantize_float8_dynamic(layer, _CPU)
    quantized = layer.weight
    # torchao ties the layer to itself, which would keep the weight until a full collection
    del layer.weight
    # torchao's functions check the exact type
    return quantized.data if type(quantized) is nn.Parameter else quantized.detach()


def _flatten(tensor: torch.Tensor) -> tuple[dict[str, torch.Tensor], str]:
    """Return the parts under the names that they have in `_ANY`, and the header's metadata."""
    parts, described = flatten_tensor_state_dict({_ANY: tensor})
    return parts, described[_ANY]


def _part_name(name: str, part: str) -> str:
    """Return the name that torchao gives to a part of `_ANY` for another tensor."""
    if part == _ANY:
        return name
    layer, _, leaf = name.rpartition(".")
    return f"{layer}._{leaf}_{part.removeprefix('layer._weight_')}"


def _concatenate(slabs: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate slabs by their bytes, because torch does not concatenate float8."""
    bits = torch.cat([slab.view(torch.uint8) for slab in slabs])
    return bits.view(slabs[0].dtype)
