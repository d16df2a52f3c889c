"""LoRA files on this disk as requests have them, and random LoRAs of a model."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from support.lora_files import file_of

from pixpod.engine.adapters.side_path import can_have_side_path
from pixpod.job import LoraFile

LORAS = Path(__file__).resolve().parents[2] / "model_cache" / "tiny" / "loras"


def lora_file(path, scale=1.0):
    return LoraFile(
        field="loras[0]",
        name=path.stem,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        path=path,
        scale=scale,
    )


def shipped_lora(name, scale=1.0):
    return lora_file(LORAS / f"{name}.safetensors", scale)


def with_loras(request, *files):
    """The request as it is before it is prepared."""
    ordered = tuple(sorted(files, key=lambda file: file.sha256))
    return replace(request, conditions=replace(request.conditions, loras=ordered))


def random_lora(model, folder, seed, *, rank=4, is_whole=False, strength=0.05, text=False):
    """Write a LoRA for all usual layers of a model, or for all layers, in diffusers' names."""
    family = model.spec.family
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for component in (family.denoiser, *(family.text_encoders if text else ())):
        for name, layer in model.components[component].named_modules():
            is_chosen = is_whole or component != family.denoiser or family.lora.is_usual(name)
            if can_have_side_path(layer) and is_chosen and not name.startswith("shared"):
                outputs, *inputs = layer.weight.shape
                down = torch.randn(rank, *inputs, generator=generator)
                up = torch.randn(outputs, rank, *[1] * len(inputs[1:]), generator=generator)
                tensors[f"{component}.{name}.lora_A.weight"] = down * strength
                tensors[f"{component}.{name}.lora_B.weight"] = up * strength
    data = file_of(tensors)
    path = folder / f"random-{hashlib.sha256(data).hexdigest()[:8]}.safetensors"
    path.write_bytes(data)
    return path
