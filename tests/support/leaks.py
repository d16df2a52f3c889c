"""Faults at chosen calls of any model, and what all components of a model are made of."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Swin2SRForImageSuperResolution,
    T5EncoderModel,
)

from pixpod.engine.model import LoadedModel

PLACES: dict[str, tuple[type[nn.Module], ...]] = {
    "text": (CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel),
    "encode": (Encoder,),
    "denoise": (UNet2DConditionModel, FluxTransformer2DModel),
    "decode": (Decoder,),
    "upscale": (Swin2SRForImageSuperResolution,),
}
"""The classes whose calls a fault strikes; weight-sharing copies are of the same classes."""


@dataclass
class Fault:
    """Acts at some calls in a place: `skip` calls pass before, then it acts `times` times."""

    place: str
    act: Callable[[], None]
    skip: int = 0
    times: int = 1
    num_acts: int = 0

    def strike(self) -> None:
        if self.skip:
            self.skip -= 1
        elif self.num_acts < self.times:
            self.num_acts += 1
            self.act()


class Faults:
    """Applies the fault in `current`, if there is one."""

    current: Fault | None = None

    def _patched(self, place: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.current and self.current.place == place:
                self.current.strike()
            return forward(*args, **kwargs)

        return call


@contextmanager
def injecting_faults() -> Iterator[Faults]:
    faults = Faults()
    patches = [
        mock.patch.object(each, "forward", faults._patched(place, each.forward))
        for place, classes in PLACES.items()
        for each in classes
    ]
    for patch in patches:
        patch.start()
    try:
        yield faults
    finally:
        for patch in patches:
            patch.stop()


Snapshot = dict[str, object]


def snapshot_of(model: LoadedModel) -> Snapshot:
    """Modules, processors, backends, hooks, configs and weights by name.

    Weights that were offloaded may be elsewhere: of addresses it has which weights share one.
    """
    found: Snapshot = {}
    names: dict[int, str] = {}
    modules = {**model.components, **{name: each.module for name, each in model.extras.items()}}
    for component, root in modules.items():
        found[f"{component}.config"] = str(getattr(root, "config", None))
        for name, module in root.named_modules():
            found[f"{component}.{name}"] = _describe(module)
        for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
            for number, part in enumerate(_parts(tensor)):
                full_name = f"{component}.{name}[{number}]"
                shared = names.setdefault(part.data_ptr(), full_name)
                content = part.detach().contiguous().view(-1).view(torch.uint8).numpy()
                digest = hashlib.sha256(content.tobytes()).hexdigest()
                found[full_name] = (shared, part.dtype, part.shape, part.device, digest)
    return found


def _describe(module: nn.Module) -> object:
    processor = getattr(module, "processor", None)
    return (
        type(module).__qualname__,
        id(module),
        type(processor).__qualname__,
        id(processor),
        str(getattr(processor, "_attention_backend", None)),
        module.training,
        sorted(set(module.__dict__) - {"_diffusers_hook"}),
        sorted(module._modules),
        len(module._forward_hooks),
        len(module._forward_pre_hooks),
    )


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a quantized one consists of; itself for a plain one."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]
