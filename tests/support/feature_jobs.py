"""The jobs of docs/features.md, on small models."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from support.broken_weights import write_manifest
from support.control_images import as_png, cases
from support.tiny_models import Desk, build_tiny_worker

from pixpod.engine.model import LoadedModel
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.testing.random_loras import random_lora
from pixpod.weights.manifest import read_manifest
from pixpod_tools.generate.features_page import FEATURES, IMAGE, LORA, MASK, refused_fields

UPSCALER = "swin2sr-x2-tiny"


def job_of(feature, model):
    """The job of a row, with images and a LoRA of this model in the place of the page's names."""
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    real = {IMAGE: as_png(cases(1)[0].given), MASK: as_png(mask), LORA: f"{model}-style"}

    def with_real(value):
        if isinstance(value, dict):
            return {key: with_real(each) for key, each in value.items()}
        if isinstance(value, list):
            return [with_real(each) for each in value]
        return real.get(value, value) if isinstance(value, str) else value

    return {"model": model, "prompt": "a red circle", **with_real(dict(feature.fields))}


def add_upscaler(weights: Path) -> None:
    """Put the shipped upscaler into a weights directory."""
    entry = read_manifest(SOURCE_WEIGHTS_DIR)[UPSCALER]
    (weights / UPSCALER).symlink_to(SOURCE_WEIGHTS_DIR / entry.path, target_is_directory=True)
    write_manifest(weights, *read_manifest(weights).values(), replace(entry, path=UPSCALER))


@contextmanager
def feature_desk(model: str, loaded: LoadedModel, root: Path, folder: Path) -> Iterator[Desk]:
    """A worker with a model of float8, a LoRA for it and an upscaler.

    `root` has the catalog `models.toml` and the weights in `float8`.
    """
    loras = folder / "loras"
    loras.mkdir()
    random_lora(loaded, loras, 1).rename(loras / f"{model}-style.safetensors")
    add_upscaler(root / "float8")
    worker = build_tiny_worker(
        folder,
        PIXPOD_LORA_DIR=str(loras),
        PIXPOD_CATALOG=str(root / "models.toml"),
        PIXPOD_WEIGHTS_DIR=str(root / "float8"),
        PIXPOD_MODELS=model,
    )
    worker.start()
    yield Desk(worker)
    worker.stop()


def check_features(desk: Desk, model: str, family: str) -> None:
    """Run each row of the table on a small model, and compare with the column of its family."""
    for feature in FEATURES:
        reply = desk.reply(**job_of(feature, model))
        refused = refused_fields(feature, family)
        if not refused:
            assert "error" not in reply, f"{feature.title}: {reply['error']}"
        else:
            assert reply.get("error", "").startswith("invalid_input: "), feature.title
            for field in refused:
                assert field in reply["error"], feature.title
