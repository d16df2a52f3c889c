"""LoRA files with random numbers, in diffusers' names."""

import hashlib
from pathlib import Path

import safetensors.torch
import torch

from pixpod.engine.adapters.side_path import can_have_side_path
from pixpod.engine.model import LoadedModel


def random_lora(
    model: LoadedModel,
    folder: Path,
    seed: int,
    *,
    rank: int = 4,
    is_whole: bool = False,
    strength: float = 0.05,
    text: bool = False,
) -> Path:
    """Write a LoRA for the layers of the denoiser that LoRAs usually have, or for all of them.

    `strength` is the spread of both matrices, `text` adds the text encoders' layers.
    """
    family = model.spec.family
    assert family.lora is not None, "only families that take LoRAs have some"
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for component in (family.denoiser, *(family.text_encoders if text else ())):
        for name, layer in model.components[component].named_modules():
            is_text = component != family.denoiser
            is_chosen = is_text or family.lora.can_have(name, is_whole=is_whole)
            if can_have_side_path(layer) and is_chosen and not name.startswith("shared"):
                outputs, *inputs = layer.weight.shape
                down = torch.randn(rank, *inputs, generator=generator)
                up = torch.randn(outputs, rank, *[1] * len(inputs[1:]), generator=generator)
                tensors[f"{component}.{name}.lora_A.weight"] = down * strength
                tensors[f"{component}.{name}.lora_B.weight"] = up * strength
    data = safetensors.torch.save(tensors)
    path = folder / f"random-{hashlib.sha256(data).hexdigest()[:8]}.safetensors"
    path.write_bytes(data)
    return path
