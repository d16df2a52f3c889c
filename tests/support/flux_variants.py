"""Small models of the families that are variants of FLUX.1, made of the tiny FLUX."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from pixpod.catalog import ModelSpec, load_catalog
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.families import FAMILIES
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod_tools.bake.bake import bake
from pixpod_tools.bake.recipes import ModelRecipe
from pixpod_tools.bake.sources import SourceOptions

FLUX_TINY = SOURCE_WEIGHTS_DIR / "tiny" / "flux-tiny"
NAME = "variant-tiny"

ENTRY = """
[variant-tiny]
family = "{family}"
licence = "MIT"
precision = {{ cpu = "float32", cuda = "bfloat16" }}

[variant-tiny.defaults]
width = 64
height = 64
num_inference_steps = 8
guidance_scale = 3.5
max_sequence_length = 48
scheduler = "FlowMatchEulerDiscreteScheduler"

[variant-tiny.limits]
min_side_px = 32
max_side_px = 256
max_pixels = 16_384
max_steps = 50
max_guidance = 30.0
max_images = 8
max_sequence_length = 512
"""


def write_repository(folder: Path, family: str, transformer: Mapping[str, object]) -> None:
    """The tiny FLUX under another pipeline's name, with a random transformer."""
    folder.mkdir()
    for path in FLUX_TINY.iterdir():
        if path.is_dir() and path.name != "transformer":
            (folder / path.name).symlink_to(path.resolve())
    index = json.loads((FLUX_TINY / "model_index.json").read_text(encoding="utf-8"))
    index["_class_name"] = FAMILIES[family].default_pipeline
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    config = FluxTransformer2DModel.load_config(FLUX_TINY / "transformer")
    torch.manual_seed(0)
    model = FluxTransformer2DModel.from_config({**config, **transformer})
    for name, parameter in model.named_parameters():
        if name.endswith("proj_out.weight") or name == "x_embedder.weight":
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "transformer")


def write_entry(path: Path, family: str) -> ModelSpec:
    path.write_text(ENTRY.format(family=family), encoding="utf-8")
    return load_catalog(path)[NAME]


def bake_variant(
    directory: Path, repository: Path, spec: ModelSpec, plan: QuantizationPlan
) -> None:
    options = SourceOptions(location=str(repository), own_models=directory, revision="1")
    bake(directory, ModelRecipe(model=NAME, plan=plan), {NAME: spec}, options, 10**9)
