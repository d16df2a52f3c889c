"""Reads a LoRA file for one model, and refuses what would not do what it says."""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from functools import partial
from typing import NoReturn

import safetensors
import safetensors.torch
import torch
from torch import nn

from pixpod.engine.adapters.adapter import Adapter
from pixpod.engine.adapters.conversion import Halves, NotConverted, convert_names
from pixpod.engine.adapters.side_path import Pair, can_have_side_path
from pixpod.engine.model import LoadedModel
from pixpod.errors import AdapterUnusable, Problem, WeightsRefused, WeightsUnreadable
from pixpod.families import FamilySpec
from pixpod.inputs.lora_names import title_of
from pixpod.job import LoraFile

_SHOWN_LAYERS = 3
_WIDENED = ("x_embedder", "conv_in")
"""Layers whose inputs a control LoRA adds to."""


def read_adapter(file: LoraFile, model: LoadedModel) -> Adapter:
    """Read, convert and check a file.

    Raises WeightsRefused, AdapterUnusable for a file of the deployment, or WeightsUnreadable if the
    file is no longer what it was.
    """
    tensors, metadata = _read(file)
    refuse = partial(_refuse, file)
    names = tuple(tensors)
    try:
        halves = convert_names(tensors, metadata, model)
    except NotConverted as exc:
        refuse(_foreign(names, model.spec.family), str(exc) or "a file with others")
    layers = _layers_of(model)
    missing = [name for name in halves if name not in layers]
    if len(missing) == len(halves):
        refuse(_foreign(names, model.spec.family), "a file with none of its layers")
    if missing:
        refuse(_foreign(names, model.spec.family), _listed(missing, len(halves)))
    if halved := [name for name, found in halves.items() if len(found) != 2]:
        refuse("layers with both halves of a pair", _listed(halved, len(halves)))
    pairs = {name: _pair(name, halves, layers[name], refuse) for name in halves}
    return _check(pairs, model, refuse)


def _read(file: LoraFile) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    try:
        data = file.path.read_bytes()
    except OSError as exc:
        raise WeightsUnreadable(f"LoRA {file.name}: {exc.strerror}") from exc
    if hashlib.sha256(data).hexdigest() != file.sha256:
        file.path.unlink(missing_ok=not file.is_deployed)
        raise WeightsUnreadable(f"LoRA {file.name}: its file has changed on the disk")
    try:
        (length,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, struct.error, KeyError) as exc:
        raise WeightsUnreadable(f"LoRA {file.name}: is no safetensors file") from exc
    return {name: tensor.float() for name, tensor in tensors.items()}, metadata


def _layers_of(model: LoadedModel) -> dict[str, nn.Module]:
    """Return the layers that may have side paths by their full names."""
    family = model.spec.family
    assert family.lora is not None, "the contract refuses LoRAs for other families"
    return {
        f"{component}.{name}": module
        for component in (family.denoiser, *family.text_encoders)
        for name, module in model.components[component].named_modules()
        if can_have_side_path(module)
        and (component != family.denoiser or family.lora.can_have(name))
    }


def _pair(name: str, halves: Halves, layer: nn.Module, refuse: "partial[NoReturn]") -> Pair:
    down, up = halves[name]["A"], halves[name]["B"]
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    outputs, *inputs = weight.shape
    if down.ndim == 4 and len(inputs) == 1:
        down = down.squeeze((2, 3))
    if up.ndim == 4:
        up = up.squeeze((2, 3))
    if down.ndim == 2 and inputs[1:] == [1, 1]:
        down = down[..., None, None]
    if list(down.shape[1:]) != inputs or up.shape != (outputs, len(down)) or not len(down):
        if name.partition(".")[2] in _WIDENED and list(down.shape[2:]) == inputs[1:]:
            refuse("a LoRA for the inputs that the model has", "a control LoRA, which adds some")
        expected = f"(rank, {', '.join(map(str, inputs))}) and ({outputs}, rank)"
        found = f"{tuple(halves[name]['A'].shape)} and {tuple(halves[name]['B'].shape)}"
        refuse(f"{expected} for {name}", found)
    return Pair(down.to(weight.dtype).contiguous(), up.to(weight.dtype).contiguous())


def _check(pairs: Mapping[str, Pair], model: LoadedModel, refuse: "partial[NoReturn]") -> Adapter:
    family = model.spec.family
    assert family.lora is not None
    for name, pair in pairs.items():
        if not (torch.isfinite(pair.down).all() and torch.isfinite(pair.up).all()):
            refuse("finite numbers", f"NaN or infinite ones in {name}")
        if pair.rank > family.lora.max_rank:
            refuse(f"a rank of at most {family.lora.max_rank}", f"{pair.rank} in {name}")
    by_component: dict[str, dict[str, Pair]] = {}
    for name, pair in pairs.items():
        component, _, layer = name.partition(".")
        by_component.setdefault(component, {})[layer] = pair
    usual = family.lora.is_usual
    of_denoiser = by_component.get(family.denoiser, {})
    return Adapter(pairs=by_component, is_whole=not all(map(usual, of_denoiser)))


def _foreign(names: Iterable[str], family: FamilySpec) -> str:
    looks_like = title_of(names)
    but = f"; it looks like one for {looks_like}" if looks_like not in (None, family.title) else ""
    return f"a LoRA of layers that {family.title} has{but}"


def _listed(names: list[str], num_layers: int) -> str:
    shown = ", ".join(names[:_SHOWN_LAYERS])
    return f"{len(names)} of {num_layers} others, such as {shown}"


def _refuse(file: LoraFile, accepted: str, value: str) -> NoReturn:
    if file.is_deployed:
        raise AdapterUnusable(f"LoRA {file.name}: expected {accepted}, got {value}")
    raise WeightsRefused([Problem(field=f"{file.field}.source", value=value, accepted=accepted)])
