"""LoRA files on this disk as requests have them."""

import hashlib
from dataclasses import replace
from pathlib import Path

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
