"""Trains sdxl-tiny and sd15-tiny: two UNets of the same size that are conditioned differently.

Zero terminal SNR, v-prediction and trailing steps throughout: without them the mean of all
images leaks into flat backgrounds.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch.nn import functional

from pixpod_tools.tiny.captions import vary
from pixpod_tools.tiny.data import Bucket, LatentBucket, sample_batch
from pixpod_tools.tiny.pretrain import Conditioning
from pixpod_tools.tiny.training import Course, train
from pixpod_tools.tiny.untrained import text_encoders

COURSE = Course(minutes=28, learning_rate=1e-3, batch_size=32)
TIMESTEP_SHIFT = 2.5
"""Shift of training towards noise, where colours and shapes are decided."""
ZEROED_SHARE = 0.7
"""Share of empty captions that SDXL sees as zeros (no negative prompt given), not as text."""

Condition = Callable[[Any, list[str], Bucket], dict[str, Any]]
"""Returns a UNet's keyword arguments for captions and images of one size."""


def read_sdxl(
    pipeline: StableDiffusionXLPipeline, captions: list[str], max_tokens: int
) -> Conditioning:
    """Encode captions as the pipeline does."""
    sequence, _, pooled, _ = pipeline.encode_prompt(
        captions, device="cpu", do_classifier_free_guidance=False
    )
    return sequence, pooled


def read_sd15(
    pipeline: StableDiffusionPipeline, captions: list[str], max_tokens: int
) -> Conditioning:
    """Encode captions as the pipeline does; the pooled vector serves the classifier only."""
    ids = pipeline.tokenizer(
        captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    encoded = pipeline.text_encoder(ids)
    return encoded.last_hidden_state, encoded.pooler_output


def condition_sdxl(
    pipeline: StableDiffusionXLPipeline, captions: list[str], bucket: Bucket
) -> dict[str, Any]:
    sequence, pooled = _zero_some_empty(captions, read_sdxl(pipeline, captions, 77))
    size = (bucket.height, bucket.width)
    time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)
    return {
        "encoder_hidden_states": sequence,
        "added_cond_kwargs": {
            "text_embeds": pooled,
            "time_ids": time_ids.expand(len(captions), -1),
        },
    }


def condition_sd15(
    pipeline: StableDiffusionPipeline, captions: list[str], bucket: Bucket
) -> dict[str, Any]:
    return {"encoder_hidden_states": read_sd15(pipeline, captions, 77)[0]}


def train_unet(
    pipeline: DiffusionPipeline, condition: Condition, buckets: list[LatentBucket], course: Course
) -> None:
    """Train the UNet in place; the text encoders stay as they are."""
    alphas = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
    ).alphas_cumprod
    text_encoders(pipeline).eval().requires_grad_(False)

    def batch_loss(rng: np.random.Generator) -> torch.Tensor:
        latents, scenes, bucket = sample_batch(buckets, course.batch_size, rng)
        with torch.no_grad():
            conditioning = condition(pipeline, [vary(scene, rng) for scene in scenes], bucket)
        timesteps = draw_timesteps(course.batch_size)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        return functional.mse_loss(pipeline.unet(noisy, timesteps, **conditioning).sample, velocity)

    train(pipeline.unet, course, batch_loss)


def draw_timesteps(count: int) -> torch.Tensor:
    """Return random timesteps, shifted towards noise."""
    share = torch.rand(count)
    share = TIMESTEP_SHIFT * share / (1 + (TIMESTEP_SHIFT - 1) * share)
    return (share * 1000).long().clamp(max=999)


def _zero_some_empty(captions: list[str], conditioning: Conditioning) -> Conditioning:
    sequence, pooled = conditioning
    empty = torch.tensor([caption == "" for caption in captions])
    kept = 1 - (empty & (torch.rand(len(captions)) < ZEROED_SHARE)).float()
    return sequence * kept[:, None, None], pooled * kept[:, None]
