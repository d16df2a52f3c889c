"""Writes a pipeline as it is in the model cache: bf16, shared parts stored once, no local paths."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from pixpod_tools.tiny.narrow import NUM_CHANNELS

SHARED = "shared"
WIDE_VAE, NARROW_VAE = "vae", "unet_vae"
"""Folders of the autoencoders with 16 latent channels, for transformers, and 4, for UNets."""
OF_OTHERS = {
    ("sd35-tiny", "text_encoder_2"): "sdxl-tiny/text_encoder_2",
    ("sd35-tiny", "tokenizer_3"): "flux-tiny/tokenizer_2",
}
"""Components that are those of another checkpoint, by checkpoint and name."""


def publish(source: Path, out: Path) -> None:
    """Write the pipeline in the folder `source` to `out` in bf16, beside the shared parts.

    A checkpoint that is there already is replaced, and its model card is kept.
    """
    draft = out.with_name(f".{out.name}")
    DiffusionPipeline.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(draft)
    _share(draft)
    forget_where_from(draft)
    if (card := out / "README.md").exists():
        shutil.copy(card, draft)
    _replace(out, draft)


def publish_vae(source: Path, cache: Path) -> None:
    """Write the autoencoder that pipelines in the folder `cache` link to, under its name there."""
    draft = cache / SHARED / f".{source.name}"
    AutoencoderKL.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(draft)
    forget_where_from(draft)
    _replace(cache / SHARED / source.name, draft)


def _replace(folder: Path, draft: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)


def _share(folder: Path) -> None:
    """Move the parts that all families share to `shared`, unless they are there; link to them."""
    shared = folder.parent / SHARED
    shared.mkdir(parents=True, exist_ok=True)
    index = json.loads((folder / "model_index.json").read_text())
    for component in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        other = OF_OTHERS.get((folder.name.removeprefix("."), component))
        if other is not None:
            shutil.rmtree(folder / component)
            (folder / component).symlink_to(Path("..") / other, target_is_directory=True)
            continue
        name = _shared_name(index[component][1], folder / component)
        if name is None:
            continue
        if (shared / name).exists():
            shutil.rmtree(folder / component)
        else:
            (folder / component).rename(shared / name)
            forget_where_from(shared / name)
        (folder / component).symlink_to(Path("..") / SHARED / name, target_is_directory=True)


def _shared_name(class_name: str, component: Path) -> str | None:
    """Return the folder under `shared` for a component; None if it is the pipeline's own."""
    if class_name == "CLIPTokenizer":
        return "clip_tokenizer"
    if class_name != "AutoencoderKL":
        return None
    channels = AutoencoderKL.load_config(component)["latent_channels"]
    return NARROW_VAE if channels == NUM_CHANNELS else WIDE_VAE


def forget_where_from(folder: Path) -> None:
    """Drop the folder names of this machine that diffusers notes in configurations."""
    for path in folder.rglob("*.json"):
        settings = json.loads(path.read_text())
        if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2) + "\n")
