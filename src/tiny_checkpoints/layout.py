"""Writes a pipeline as it lies in the model cache: bf16, shared parts stored once, no traces."""

import json
import shutil
import uuid
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

SHARED = "shared"
_LINKED = {"vae": "vae", "tokenizer": "clip_tokenizer"}
"""Component of a pipeline -> folder under `shared`; tokenizer_2 of SDXL is linked too."""


def publish(pipeline: DiffusionPipeline, out: Path) -> None:
    """Write `pipeline` to the folder `out` in bf16, beside the folder of shared parts.

    A checkpoint that lies there already is replaced in one move, its model card is kept. Leaves
    the pipeline's weights as they are.
    """
    draft = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
    pipeline.save_pretrained(draft)
    _halve(draft)
    _share(draft)
    _forget_where_from(draft)
    if (card := out / "README.md").exists():
        shutil.copy(card, draft)
    if out.exists():
        shutil.rmtree(out)
    draft.rename(out)


def _halve(folder: Path) -> None:
    """Rewrite every weight file in bf16, as `from_pretrained` would cast it."""
    from safetensors.torch import load_file, save_file

    for path in folder.rglob("*.safetensors"):
        weights = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    for config in folder.rglob("config.json"):
        settings = json.loads(config.read_text())
        if "dtype" in settings:
            settings["dtype"] = str(torch.bfloat16).removeprefix("torch.")
            config.write_text(json.dumps(settings, indent=2) + "\n")


def _share(folder: Path) -> None:
    """Move what all families share to `shared` (unless it is there) and link to it."""
    shared = folder.parent / SHARED
    shared.mkdir(parents=True, exist_ok=True)
    for component in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        is_clip_tokenizer = component.startswith("tokenizer") and "CLIP" in _class_of(
            folder, component
        )
        name = _LINKED["tokenizer"] if is_clip_tokenizer else _LINKED.get(component)
        if name is None:
            continue
        if (shared / name).exists():
            shutil.rmtree(folder / component)
        else:
            (folder / component).rename(shared / name)
            _forget_where_from(shared / name)
        (folder / component).symlink_to(Path("..") / SHARED / name, target_is_directory=True)


def _class_of(folder: Path, component: str) -> str:
    return str(json.loads((folder / "model_index.json").read_text())[component][1])


def _forget_where_from(folder: Path) -> None:
    """Drop the folder names of this machine that diffusers notes in configurations."""
    for path in folder.rglob("*.json"):
        settings = json.loads(path.read_text())
        if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2) + "\n")
