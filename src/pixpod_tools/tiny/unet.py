"""Trains sdxl-tiny and sd15-tiny: two UNets of the same size that are conditioned differently.

Zero terminal SNR, v-prediction and trailing steps throughout: without them the mean of all
pictures leaks into flat backgrounds.
"""

from typing import Any, Protocol

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch.nn import functional

from pixpod_tools.tiny.captions import vary
from pixpod_tools.tiny.data import Bucket, LatentBucket, sample_batch
from pixpod_tools.tiny.encoders import WIDTH, Conditioning, Sd15Text, SdxlText, TextStack
from pixpod_tools.tiny.training import Course, train

COURSE = Course(minutes=28, learning_rate=1e-3, batch_size=32)
TIMESTEP_SHIFT = 2.5
"""Draws training towards noise, where colours and shapes are decided."""
ZEROED_SHARE = 0.7
"""Of the empty captions: how many SDXL sees as zeros (no negative prompt given), not as text."""
KARRAS_SIGMA_MAX = 20.0
"""First of Karras' noise levels. Without it they begin at the model's own first level, which is
4096 for one trained down to a signal of zero: half of 12 steps would see nothing but noise, and
from 30 steps on diffusers' DPM++ fails, because several levels round to the same timestep.
"""
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_TIME_ID_WIDTH = 32


class UnetFamily(Protocol):
    """What differs between the two UNets."""

    @property
    def text(self) -> TextStack: ...

    def build(self, vae: AutoencoderKL) -> DiffusionPipeline: ...

    def condition(self, captions: list[str], bucket: Bucket) -> dict[str, Any]:
        """Keyword arguments of the UNet for these captions and pictures of this size."""
        ...


class SdxlFamily:
    def __init__(self) -> None:
        self.text = SdxlText()

    def build(self, vae: AutoencoderKL) -> StableDiffusionXLPipeline:
        unet = UNet2DConditionModel(
            **_unet_shape(self.text),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 1),
            addition_embed_type="text_time",
            addition_time_embed_dim=_TIME_ID_WIDTH,
            projection_class_embeddings_input_dim=6 * _TIME_ID_WIDTH + WIDTH,
        )
        return StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=self.text.text_encoder,
            text_encoder_2=self.text.text_encoder_2,
            tokenizer=self.text.tokenizer,
            tokenizer_2=self.text.tokenizer,
            unet=unet,
            scheduler=build_scheduler(),
            add_watermarker=False,
        )

    def condition(self, captions: list[str], bucket: Bucket) -> dict[str, Any]:
        sequence, pooled = _zero_some_empty(captions, self.text.read(captions, 77))
        size = (bucket.height, bucket.width)
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)
        return {
            "encoder_hidden_states": sequence,
            "added_cond_kwargs": {
                "text_embeds": pooled,
                "time_ids": time_ids.expand(len(captions), -1),
            },
        }


class Sd15Family:
    def __init__(self) -> None:
        self.text = Sd15Text()

    def build(self, vae: AutoencoderKL) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=self.text.text_encoder,
            tokenizer=self.text.tokenizer,
            unet=UNet2DConditionModel(**_unet_shape(self.text)),
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def condition(self, captions: list[str], bucket: Bucket) -> dict[str, Any]:
        return {"encoder_hidden_states": self.text.read(captions, 77)[0]}


def train_unet(
    pipeline: DiffusionPipeline,
    family: UnetFamily,
    buckets: list[LatentBucket],
    course: Course,
) -> None:
    """Train the UNet in place; the text encoders stay as they are."""
    torch.manual_seed(course.seed)
    rng = np.random.default_rng(course.seed)
    alphas = DDPMScheduler(**_BETAS, rescale_betas_zero_snr=True).alphas_cumprod
    family.text.encoders().eval().requires_grad_(False)

    def batch_loss() -> torch.Tensor:
        latents, scenes, bucket = sample_batch(buckets, course.batch_size, rng)
        with torch.no_grad():
            conditioning = family.condition([vary(scene, rng) for scene in scenes], bucket)
        timesteps = _draw_timesteps(course.batch_size)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        return functional.mse_loss(pipeline.unet(noisy, timesteps, **conditioning).sample, velocity)

    train(pipeline.unet, course, batch_loss)


def _draw_timesteps(count: int) -> torch.Tensor:
    share = torch.rand(count)
    share = TIMESTEP_SHIFT * share / (1 + (TIMESTEP_SHIFT - 1) * share)
    return (share * 1000).long().clamp(max=999)


def _zero_some_empty(captions: list[str], conditioning: Conditioning) -> Conditioning:
    sequence, pooled = conditioning
    empty = torch.tensor([caption == "" for caption in captions])
    kept = 1 - (empty & (torch.rand(len(captions)) < ZEROED_SHARE)).float()
    return sequence * kept[:, None, None], pooled * kept[:, None]


def _unet_shape(text: TextStack) -> dict[str, Any]:
    return {
        "sample_size": 8,
        "in_channels": 16,
        "out_channels": 16,
        "block_out_channels": (48, 80),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "cross_attention_dim": text.sequence_width,
        "attention_head_dim": (3, 5),  # heads, of 16 channels each; the name is diffusers' own
    }


def build_scheduler() -> EulerDiscreteScheduler:
    """Return the scheduler whose config other schedulers are made of, too."""
    scheduler = EulerDiscreteScheduler(
        **_BETAS,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
        sigma_max=KARRAS_SIGMA_MAX,
    )
    # Euler does not read it; DDIM, LCM and TCD clip latents to -1 ... 1 by default
    scheduler.register_to_config(clip_sample=False)
    return scheduler
