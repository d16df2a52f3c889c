"""Trains flux-tiny: the FLUX transformer with CLIP and T5, by flow matching."""

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import nn
from torch.nn import functional

from pixpod_tools.tiny.captions import vary
from pixpod_tools.tiny.data import LatentBucket, sample_batch
from pixpod_tools.tiny.pretrain import Conditioning
from pixpod_tools.tiny.training import Course, train
from pixpod_tools.tiny.untrained import text_encoders

COURSE = Course(minutes=32, learning_rate=1.5e-3, batch_size=64)
SIGMA_SHIFT = 3.0
"""Shift of training towards noise; the scheduler samples alike (exp(1.1) = 3.0). Without it the
prototype learnt shapes three times as slowly."""
POOLED_DROPPED = 0.5
"""Share of rows whose pooled vector is that of an empty text, so that T5 alone has to say all.
Otherwise the model takes the colours from the pooled vector and ignores T5."""
TEXT_LENGTHS, TEXT_LENGTH_SHARES = (24, 48, 77, 128), (0.55, 0.35, 0.07, 0.03)


def read(pipeline: FluxPipeline, captions: list[str], max_tokens: int) -> Conditioning:
    """Encode captions as the pipeline does."""
    sequence, pooled, _ = pipeline.encode_prompt(
        captions, None, device="cpu", max_sequence_length=max_tokens
    )
    return sequence, pooled


def train_flux(pipeline: FluxPipeline, buckets: list[LatentBucket], course: Course) -> None:
    """Train transformer and text encoders together, in place."""
    transformer = pipeline.transformer

    def batch_loss(rng: np.random.Generator) -> torch.Tensor:
        latents, scenes, _ = sample_batch(buckets, course.batch_size, rng)
        captions = [vary(scene, rng) for scene in scenes]
        max_tokens = int(rng.choice(TEXT_LENGTHS, p=TEXT_LENGTH_SHARES))
        sequence, pooled = read(pipeline, captions, max_tokens)
        is_dropped = torch.rand(len(captions), 1) < POOLED_DROPPED
        pooled = torch.where(is_dropped, read(pipeline, [""], max_tokens)[1], pooled)
        clean = FluxPipeline._pack_latents(latents, *latents.shape)
        noise = torch.randn_like(clean)
        sigma = draw_sigmas(course.batch_size)
        weight = sigma[:, None, None]
        height, width = latents.shape[-2] // 2, latents.shape[-1] // 2
        velocity = transformer(
            hidden_states=(1 - weight) * clean + weight * noise,
            timestep=sigma,
            guidance=1 + 6 * torch.rand(course.batch_size),
            pooled_projections=pooled,
            encoder_hidden_states=sequence,
            txt_ids=torch.zeros(max_tokens, 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(
                1, height, width, torch.device("cpu"), torch.float32
            ),
            return_dict=False,
        )[0]
        return functional.mse_loss(velocity, noise - clean)

    modules = nn.ModuleList([transformer, text_encoders(pipeline)])
    train(modules, course, batch_loss)


def draw_sigmas(count: int) -> torch.Tensor:
    """Return random noise levels: logit-normal, 15 % uniform to include both ends, then shifted."""
    sigma = torch.sigmoid(torch.randn(count))
    sigma = torch.where(torch.rand(count) < 0.15, torch.rand(count), sigma)
    return SIGMA_SHIFT * sigma / (1 + (SIGMA_SHIFT - 1) * sigma)
