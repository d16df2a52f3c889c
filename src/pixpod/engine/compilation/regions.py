"""Regions: the modules of a model that are compiled each by itself, and how they are called.

A region's weights are arguments of what is compiled, not a part of it. So one package serves all
blocks of a kind, and weights may be offloaded, onloaded and replaced.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import TreeSpec, tree_flatten

ALIGNMENT_BYTES = 16
"""Size of the vectors that compiled code reads: its arguments must begin at a multiple of it."""

NUMBER_DTYPE = torch.float32
"""Type of single numbers in calls: timesteps are integers or floats, depending on the scheduler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The place of one weight in a module. `parts` are the tensors that a quantised weight is made
    of; empty for a plain one.
    """

    name: str
    owner: dict[str, torch.Tensor | None]
    key: str
    parts: tuple[str, ...]

    @property
    def weight(self) -> torch.Tensor:
        found = self.owner[self.key]
        assert found is not None
        return found


def weight_slots(module: nn.Module) -> tuple[Slot, ...]:
    """Return the slots of all parameters and buffers, in the order that compiled code expects."""
    return tuple(
        Slot(
            name=f"{prefix}{'.' if prefix else ''}{key}",
            owner=owner,
            key=key,
            parts=tuple(weight.__tensor_flatten__()[0])
            if is_traceable_wrapper_subclass(weight)
            else (),
        )
        for prefix, child in module.named_modules()
        for owner in (child._parameters, child._buffers)
        for key, weight in owner.items()
        if weight is not None
    )


def read_weights(slots: Sequence[Slot]) -> Iterator[torch.Tensor]:
    """Yield the plain tensors that the weights are made of at this moment."""
    for slot in slots:
        weight = slot.weight
        if slot.parts:
            yield from (getattr(weight, part) for part in slot.parts)
        else:
            yield weight


def kind_of(region: nn.Module, component: nn.Module) -> str:
    """Return the kind of a region, which is the same for all regions that one package serves. It
    depends on class, configuration, layout of the weights and the kernels of attention, but not
    on the weights' values.
    """
    config = getattr(component, "config", {})
    facts = {
        "config": {key: value for key, value in config.items() if not key.startswith("_")},
        "weights": [[slot.name, *_layout(slot.weight)] for slot in weight_slots(region)],
        "attention": sorted(_attention_backends(region)),
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return f"{type(region).__name__}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The arguments of one call of a region, flattened."""

    leaves: tuple[Any, ...]
    spec: TreeSpec

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> "Call":
        """Flatten arguments, and copy the few tensors that do not suit compiled code."""
        leaves, spec = tree_flatten((args, dict(sorted(kwargs.items()))))
        return cls(leaves=tuple(_settle(leaf, device) for leaf in leaves), spec=spec)

    @property
    def tensors(self) -> Iterator[torch.Tensor]:
        return (leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor))

    def with_tensors(self, tensors: Iterable[torch.Tensor]) -> "Call":
        """Return the same call with these tensors in the place of its own, in their order."""
        left = iter(tensors)
        leaves = (next(left) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves)
        return replace(self, leaves=tuple(leaves))


def granularity(region: nn.Module) -> int:
    """Return the number of which the sides of a region's first argument must be multiples; else 1.

    A UNet takes another path through its code if its sides cannot be halved at each level.
    """
    levels = getattr(region, "num_upsamplers", 0)
    return 1 << int(levels)


def _settle(leaf: object, device: torch.device) -> object:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if leaf.ndim == 0:
        return leaf.to(device, NUMBER_DTYPE)
    if not leaf.is_contiguous():
        return leaf.contiguous()
    if leaf.data_ptr() % ALIGNMENT_BYTES:
        return leaf.clone(memory_format=torch.contiguous_format)
    # a slice of a single row is contiguous, but keeps the strides of the whole tensor
    return leaf.flatten().view(leaf.shape) if leaf.shape[0] == 1 else leaf


def _layout(weight: torch.Tensor) -> list[object]:
    layout: list[object] = [str(weight.dtype), list(weight.shape), list(weight.stride())]
    if is_traceable_wrapper_subclass(weight):
        layout += [type(weight).__name__, str(weight.__tensor_flatten__()[1])]
    return layout


def _attention_backends(region: nn.Module) -> set[str]:
    processors = (getattr(module, "processor", None) for module in region.modules())
    return {str(getattr(each, "_attention_backend", None)) for each in processors if each}
