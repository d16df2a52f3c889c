"""A family that the product does not know: one data value, its pipeline calls, random weights."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from pixpod.engine.execution.pipelines.sd35 import Sd35Calls
from pixpod.families import SD35
from pixpod_tools.bake.character_tokenizers import clip_tokenizer, t5_tokenizer

SD3 = replace(SD35, name="sd3", title="SD 3", calls="support.sd3:Sd3Calls", quantization=None)

CATALOG_ENTRY = """
[sd3-tiny]
family = "sd3"
licence = "MIT"
precision = { cpu = "float32" }

[sd3-tiny.defaults]
width = 64
height = 64
num_inference_steps = 3
guidance_scale = 4.0
max_sequence_length = 32
scheduler = "Euler"

[sd3-tiny.limits]
min_side_px = 32
max_side_px = 128
max_pixels = 16384
max_steps = 20
max_guidance = 10.0
max_images = 8
max_sequence_length = 64
"""


class Sd3Calls(Sd35Calls):
    """Those of SD 3.5, found outside of the product."""


def write_random_sd3(folder: Path) -> None:
    """Write a pipeline with small random weights, as diffusers saves one."""
    torch.manual_seed(0)
    clip = clip_tokenizer()
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 16, 32, 32),
            latent_channels=4,
            norm_num_groups=8,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=_clip(clip),
        tokenizer=clip,
        text_encoder_2=_clip(clip),
        tokenizer_2=clip,
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=256, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4)
        ),
        tokenizer_3=t5_tokenizer(),
    )
    pipe.save_pretrained(folder)


def _clip(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=256,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
