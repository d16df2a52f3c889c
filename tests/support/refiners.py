"""A deployment of sdxl-tiny with refiners: its own UNet, one like SDXL's, and one of SD 1.5."""

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from support.broken_weights import copy_weights, write_manifest

from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.weights.manifest import ManifestEntry, read_manifest

MODEL = "sdxl-tiny"
OWN = "sdxl-refiner-tiny"
AESTHETIC = "aesthetic-refiner"
ALIEN = "alien-refiner"

_ENTRY = """
[extras.{name}]
kind = "refiner"
family = "sdxl"
models = ["sdxl-tiny"]
licence = "MIT"
gib_16 = 0.003
"""


def refiner_deployment(folder: Path) -> dict[str, str]:
    """Write weights and a catalog; returns the environment variables of a worker with them."""
    weights = copy_weights(folder / "weights", MODEL, OWN, "sdxl-canny-tiny")
    aesthetic_unet().save_pretrained(weights / AESTHETIC)
    alien = SOURCE_WEIGHTS_DIR / "tiny" / "sd15-tiny" / "unet"
    (weights / ALIEN).symlink_to(alien, target_is_directory=True)
    entries = [
        ManifestEntry(name=name, path=name, revision="1", is_extra=True)
        for name in (AESTHETIC, ALIEN)
    ]
    write_manifest(weights, *read_manifest(weights).values(), *entries)
    catalog = folder / "models.toml"
    text = "".join(_ENTRY.format(name=name) for name in (AESTHETIC, ALIEN))
    catalog.write_text(text, encoding="utf-8")
    return {"PIXPOD_WEIGHTS_DIR": str(weights), "PIXPOD_CATALOG": str(catalog)}


def aesthetic_unet() -> UNet2DConditionModel:
    """A random UNet that reads the second text encoder and an aesthetic score."""
    folder = SOURCE_WEIGHTS_DIR / "tiny" / MODEL
    second = json.loads((folder / "text_encoder_2" / "config.json").read_text(encoding="utf-8"))
    config = UNet2DConditionModel.load_config(folder / "unet")
    width = 5 * config["addition_time_embed_dim"] + second["projection_dim"]
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(
        {
            **config,
            "cross_attention_dim": second["hidden_size"],
            "projection_class_embeddings_input_dim": width,
        }
    )
