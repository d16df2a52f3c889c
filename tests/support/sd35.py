"""sd35-tiny as a model of a deployment's own, also without T5."""

from collections.abc import Sequence
from pathlib import Path

from pixpod.catalog import ModelSpec, load_catalog
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod_tools.bake.bake import bake
from pixpod_tools.bake.recipes import ModelRecipe
from pixpod_tools.bake.sources import SourceOptions

SD35_TINY = SOURCE_WEIGHTS_DIR / "tiny" / "sd35-tiny"
NAME = "sd35-own"
T5 = "text_encoder_3"

ENTRY = """
[sd35-own]
family = "sd35"
licence = "MIT"
without = {without}
precision = {{ cpu = "float32" }}

[sd35-own.defaults]
width = 64
height = 64
num_inference_steps = 8
guidance_scale = 3.0
max_sequence_length = 48
scheduler = "FlowMatchEulerDiscreteScheduler"

[sd35-own.limits]
min_side_px = 32
max_side_px = 256
max_pixels = 16_384
max_steps = 50
max_guidance = 10.0
max_images = 8
max_sequence_length = 512
"""


def write_entry(path: Path, without: Sequence[str] = ()) -> ModelSpec:
    path.write_text(ENTRY.format(without=list(without)), encoding="utf-8")
    return load_catalog(path)[NAME]


def bake_own(directory: Path, spec: ModelSpec, plan: QuantizationPlan) -> None:
    options = SourceOptions(location=str(SD35_TINY), own_models=directory, revision="1")
    bake(directory, ModelRecipe(model=NAME, plan=plan), {NAME: spec}, options, 10**9)
