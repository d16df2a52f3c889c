"""Writes a pipeline as it lies in the model cache: bf16, shared parts stored once, no traces."""

import json
import shutil
import uuid
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import load_file, save_file

SHARED = "shared"
_LINKED = {"AutoencoderKL": "vae", "CLIPTokenizer": "clip_tokenizer"}
"""Class of a component -> folder under `shared`."""


def publish(pipeline: DiffusionPipeline, out: Path) -> None:
    """Write `pipeline` to the folder `out` in bf16, beside the folder of shared parts.

    A checkpoint that lies there already is replaced, its model card is kept. Leaves
    the pipeline's weights as they are.
    """
    draft = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
    pipeline.save_pretrained(draft)
    _halve(draft)
    _share(draft)
    _forget_where_from(draft)
    if (card := out / "README.md").exists():
        shutil.copy(card, draft)
    _replace(out, draft)


def publish_vae(vae: AutoencoderKL, cache: Path) -> None:
    """Write the autoencoder that the pipelines in the folder `cache` link to."""
    draft = cache / SHARED / ".vae"
    vae.save_pretrained(draft)
    _halve(draft)
    _forget_where_from(draft)
    _replace(cache / SHARED / "vae", draft)


def _replace(folder: Path, draft: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)


def _halve(folder: Path) -> None:
    """Rewrite every weight file in bf16, as `from_pretrained` would cast it."""
    for path in folder.rglob("*.safetensors"):
        weights = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    for config in folder.rglob("config.json"):
        settings = json.loads(config.read_text())
        if "dtype" in settings:
            settings["dtype"] = str(torch.bfloat16).removeprefix("torch.")
            config.write_text(json.dumps(settings, indent=2) + "\n")


def _share(folder: Path) -> None:
    """Move what all families share to `shared` (unless it lies there) and link to it."""
    shared = folder.parent / SHARED
    shared.mkdir(parents=True, exist_ok=True)
    for component in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        name = _LINKED.get(_class_of(folder, component))
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
