"""Small pipelines with random weights, of families of which no trained checkpoint ships."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from support.variant_runs import ImageEditor, Pixels, noise_images
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from pixpod.catalog import ModelSpec, load_catalog
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.families import Precision
from pixpod.job import GenerationRequest, Mode
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod_tools.bake.bake import bake
from pixpod_tools.bake.character_tokenizers import qwen_tokenizer
from pixpod_tools.bake.recipes import ModelRecipe
from pixpod_tools.bake.sources import SourceOptions

FLUX_TINY = SOURCE_WEIGHTS_DIR / "tiny" / "flux-tiny"
NAME, GUIDED = "random-tiny", "guided-tiny"
FLOAT32 = QuantizationPlan(precision=Precision.FLOAT32)
FLOAT8 = QuantizationPlan(precision=Precision.FLOAT8_DYNAMIC)
PROMPTS = (
    "a red circle",
    "a large green triangle far below a small white square, on a grey wall in the evening",
    "two blue squares beside each other",
)
IMAGES = noise_images(3)

_ENTRY = """
[{name}]
family = "{family}"
licence = "MIT"
takes_guidance = {takes_guidance}
precision = {{ cpu = "float32", cuda = "bfloat16" }}

[{name}.defaults]
width = 64
height = 64
num_inference_steps = 4
max_sequence_length = 128
scheduler = "FlowMatchEulerDiscreteScheduler"
{guidance}

[{name}.limits]
min_side_px = 32
max_side_px = 256
max_pixels = 16_384
max_steps = 12
max_guidance = 10.0
max_images = 8
max_sequence_length = 128
"""

_QWEN = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}


def write_z_image(folder: Path) -> None:
    """Z-Image with the trained VAE of flux-tiny."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        dim=96,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=64,
        axes_dims=[8, 8, 8],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        nn.init.normal_(token)
    pipe = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL.from_pretrained(FLUX_TINY / "vae"),
        text_encoder=Qwen3Model(Qwen3Config(**_QWEN, num_hidden_layers=3)),
        tokenizer=qwen_tokenizer(),
        transformer=transformer,
    )
    pipe.save_pretrained(folder)


def write_flux2_klein(folder: Path) -> None:
    """FLUX.2 klein, not distilled: it takes guidance, but does not need any."""
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    config = Qwen3Config(**{**_QWEN, "hidden_size": 32}, num_hidden_layers=27)
    transformer = Flux2Transformer2DModel(
        in_channels=32,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=96,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    for parameter in transformer.parameters():
        if parameter.ndim > 1:  # wider than the class has them: so texts and images matter
            nn.init.normal_(parameter, std=0.16)
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(config),
        tokenizer=qwen_tokenizer(),
        transformer=transformer,
    )
    pipe.save_pretrained(folder)


def write_entries(path: Path, family: str) -> tuple[ModelSpec, ModelSpec]:
    """Return two models of the family: one that takes no guidance, and one that does."""
    entries = (
        _ENTRY.format(name=NAME, family=family, takes_guidance="false", guidance=""),
        _ENTRY.format(
            name=GUIDED, family=family, takes_guidance="true", guidance="guidance_scale = 3.0"
        ),
    )
    path.write_text("".join(entries), encoding="utf-8")
    catalog = load_catalog(path)
    return catalog[NAME], catalog[GUIDED]


def bake_random(directory: Path, repository: Path, spec: ModelSpec, plan: QuantizationPlan) -> None:
    options = SourceOptions(location=str(repository), own_models=directory, revision="1")
    recipe = ModelRecipe(model=spec.name, plan=plan)
    bake(directory, recipe, {spec.name: spec}, options, 10**9)


@dataclass
class RandomFamily:
    """A family's repository, the weights that were baked from it, and who runs these in float32.

    `editor` takes no guidance, `guided` does.
    """

    root: Path
    editor: ImageEditor
    guided: ImageEditor
    stock: dict[type, Any] = field(default_factory=dict)

    @classmethod
    def make(cls, root: Path, family: str, write: Callable[[Path], None]) -> "RandomFamily":
        write(root / "repository")
        specs = write_entries(root / "models.toml", family)
        for spec in specs:
            bake_random(root / "float32", root / "repository", spec, FLOAT32)
        bake_random(root / "float8", root / "repository", specs[0], FLOAT8)
        editor, guided = (ImageEditor(spec, root / "float32", FLOAT32) for spec in specs)
        return cls(root, editor, guided)

    def in_float8(self) -> ImageEditor:
        return ImageEditor(self.editor.spec, self.root / "float8", FLOAT8)

    def in_bfloat16(self) -> ImageEditor:
        plan = QuantizationPlan(precision=Precision.BFLOAT16)
        bake_random(self.root / "bfloat16", self.root / "repository", self.editor.spec, plan)
        return ImageEditor(self.editor.spec, self.root / "bfloat16", plan)

    def stock_images(self, pipeline_class, *loras: Path, **options):
        """Images of diffusers' own pipeline for PROMPTS as one batch."""
        pipe = None if loras else self.stock.get(pipeline_class)
        if pipe is None:
            pipe = pipeline_class.from_pretrained(self.root / "repository", dtype=torch.float32)
            pipe.set_progress_bar_config(disable=True)
            for lora in loras:
                pipe.load_lora_weights(lora)
        if not loras:
            self.stock[pipeline_class] = pipe
        given = {
            "prompt": list(PROMPTS),
            "generator": [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))],
            "width": 64,
            "height": 64,
            "num_inference_steps": 3,
            "max_sequence_length": 128,
        }
        with torch.inference_mode():
            found = pipe(**given | options, output_type="np").images
        return (found * 255).round().astype(int)


def requests_of(
    editor: ImageEditor,
    mode: Mode = Mode.TEXT_TO_IMAGE,
    prompts: tuple[str, ...] = PROMPTS,
    mask: Pixels | None = None,
    **changes: object,
) -> list[GenerationRequest]:
    """One request for each prompt, with images of their own unless the mode has none."""
    images = [None] * len(prompts) if mode is Mode.TEXT_TO_IMAGE else IMAGES
    return [
        editor.request(mode, prompt, image, mask, seed=seed, **changes)
        for seed, (prompt, image) in enumerate(zip(prompts, images, strict=True))
    ]


def most_off(images, others) -> int:
    """The largest difference, in levels."""
    return int(np.abs(np.stack(images) - np.stack(others)).max())
