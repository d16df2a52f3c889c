"""A deployment of sdxl-tiny with a depth estimator in the published layout, with random weights."""

from pathlib import Path

import torch
from support.broken_weights import copy_weights, write_manifest
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

from pixpod.weights.manifest import ManifestEntry, read_manifest

NAME = "estimator"
SIZE_PX = 70
MODELS = ("sdxl-tiny", "sdxl-canny-tiny", "sdxl-depth-tiny")

_CATALOG = f"""
[extras.{NAME}]
kind = "depth_estimator"
size_px = {SIZE_PX}
licence = "MIT"
gib_16 = 0.046
"""


def estimator_deployment(folder: Path) -> dict[str, str]:
    """Write weights and a catalog; returns the environment variables of a worker with them."""
    weights = copy_weights(folder / "weights", *MODELS)
    random_estimator().save_pretrained(weights / NAME)
    entry = ManifestEntry(name=NAME, path=NAME, revision="1", is_extra=True)
    write_manifest(weights, *read_manifest(weights).values(), entry)
    catalog = folder / "models.toml"
    catalog.write_text(_CATALOG, encoding="utf-8")
    return {"PIXPOD_WEIGHTS_DIR": str(weights), "PIXPOD_CATALOG": str(catalog)}


def random_estimator() -> DepthAnythingForDepthEstimation:
    """Its last layer adds what keeps depths above 0, where they differ."""
    torch.manual_seed(4)
    module = DepthAnythingForDepthEstimation(DepthAnythingConfig()).eval()
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape) / parameter[0].numel() ** 0.5
    module.head.conv3.bias.data += 10.0
    return module
