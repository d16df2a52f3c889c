"""Trains sd35-tiny: the transformer of Stable Diffusion 3.5, by flow matching.

Its text encoders are those of sdxl-tiny and flux-tiny, already trained: CLIP-G is the same file,
CLIP-L has a projection more, and T5 is widened to the width that Stable Diffusion 3.5 needs.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.utils import logging
from torch import nn
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from pixpod_tools.tiny.captions import vary
from pixpod_tools.tiny.data import LatentBucket, sample_batch
from pixpod_tools.tiny.flux import SIGMA_SHIFT, draw_sigmas
from pixpod_tools.tiny.layout import SHARED, WIDE_VAE
from pixpod_tools.tiny.pretrain import Conditioning
from pixpod_tools.tiny.training import Course, train
from pixpod_tools.tiny.untrained import text_encoders

NAME = "sd35-tiny"
COURSE = Course(minutes=60, learning_rate=1.5e-3, batch_size=32)
TEXT_LENGTHS, TEXT_LENGTH_SHARES = ((32, 24), (32, 48), (77, 48)), (0.6, 0.2, 0.2)
"""Tokens of the CLIP encoders, which always read 77 in service, and of T5. Most are padding."""
T5_DROPPED, CLIP_DROPPED = 0.4, 0.3
"""Shares of rows without T5, as of a deployment that leaves it out, and with the CLIP encoders
reading nothing, so that either kind alone says all. The others have both."""
CONFIG = {
    "sample_size": 32,  # half of it is pos_embed_max_size: neighbours differ by a whole step
    "pos_embed_max_size": 16,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 5,
    "attention_head_dim": 32,
    "num_attention_heads": 3,
    "joint_attention_dim": 128,
    "caption_projection_dim": 96,
    "pooled_projection_dim": 128,
    "qk_norm": "rms_norm",
    "dual_attention_layers": (0,),
}


def untrained_sd35(cache: Path) -> StableDiffusion3Pipeline:
    """Return a pipeline with a fresh transformer; all else is of the checkpoints in `cache`."""
    transformer = SD3Transformer2DModel(**CONFIG)
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    tokenizer = CLIPTokenizer.from_pretrained(cache / SHARED / "clip_tokenizer")
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SIGMA_SHIFT),
        vae=AutoencoderKL.from_pretrained(cache / SHARED / WIDE_VAE, dtype=torch.float32),
        text_encoder=_projected(
            CLIPTextModel.from_pretrained(cache / "sdxl-tiny" / "text_encoder", dtype=torch.float32)
        ),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(
            cache / "sdxl-tiny" / "text_encoder_2", dtype=torch.float32
        ),
        tokenizer_2=tokenizer,
        text_encoder_3=_widened(
            T5EncoderModel.from_pretrained(
                cache / "flux-tiny" / "text_encoder_2", dtype=torch.float32
            )
        ),
        tokenizer_3=AutoTokenizer.from_pretrained(cache / "flux-tiny" / "tokenizer_2"),
    )


@torch.no_grad()
def _projected(encoder: CLIPTextModel) -> CLIPTextModelWithProjection:
    """Return the encoder with a projection that changes nothing."""
    projected = CLIPTextModelWithProjection(CLIPTextConfig(**encoder.config.to_diff_dict()))
    projected.text_model.load_state_dict(encoder.state_dict())
    nn.init.eye_(projected.text_projection.weight)
    return projected


@torch.no_grad()
def _widened(encoder: T5EncoderModel) -> T5EncoderModel:
    """Return an encoder twice as wide whose first half is the output of this one, the rest zero.

    The norms divide by the mean square, which the new half halves; their weights make up for it.
    Its weights are small numbers instead of zeros: torchao's float8 makes NaN of a row of zeros.
    """
    width = encoder.config.d_model
    wide = T5EncoderModel(T5Config(**{**encoder.config.to_diff_dict(), "d_model": 2 * width}))
    state, generator = wide.state_dict(), torch.Generator().manual_seed(0)
    for name, weight in encoder.state_dict().items():
        kept = tuple(slice(size) for size in weight.shape)
        spread = 0.0 if "norm" in name else 1e-3
        state[name] = spread * torch.randn(state[name].shape, generator=generator)
        state[name][kept] = weight / 2**0.5 if "norm" in name else weight
    wide.load_state_dict(state)
    return wide


def read(
    pipeline: StableDiffusion3Pipeline, captions: list[str], max_tokens: tuple[int, int]
) -> Conditioning:
    """Encode captions as the pipeline does, with so many tokens of CLIP and of T5."""
    pipeline.tokenizer_max_length, t5_tokens = max_tokens
    sequence, _, pooled, _ = pipeline.encode_prompt(
        captions,
        None,
        None,
        device="cpu",
        do_classifier_free_guidance=False,
        max_sequence_length=t5_tokens,
    )
    return sequence, pooled


def train_sd35(
    pipeline: StableDiffusion3Pipeline, buckets: list[LatentBucket], course: Course
) -> None:
    """Train the transformer in place; the text encoders stay as they are."""
    logging.set_verbosity_error()  # each caption that is cut would be logged
    text_encoders(pipeline).eval().requires_grad_(False)

    def batch_loss(rng: np.random.Generator) -> torch.Tensor:
        latents, scenes, _ = sample_batch(buckets, course.batch_size, rng)
        max_tokens = TEXT_LENGTHS[int(rng.choice(len(TEXT_LENGTHS), p=TEXT_LENGTH_SHARES))]
        with torch.no_grad():
            captions = [vary(scene, rng) for scene in scenes]
            conditioning = _drop_some(pipeline, read(pipeline, captions, max_tokens), max_tokens)
        noise = torch.randn_like(latents)
        sigma = draw_sigmas(course.batch_size)
        weight = sigma[:, None, None, None]
        velocity = _velocity(pipeline, (1 - weight) * latents + weight * noise, sigma, conditioning)
        return functional.mse_loss(velocity, noise - latents)

    train(pipeline.transformer, course, batch_loss)


def _velocity(
    pipeline: StableDiffusion3Pipeline,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    conditioning: Conditioning,
) -> torch.Tensor:
    sequence, pooled = conditioning
    velocity: torch.Tensor = pipeline.transformer(
        hidden_states=noisy,
        timestep=1000 * sigma,
        encoder_hidden_states=sequence,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return velocity


def _drop_some(
    pipeline: StableDiffusion3Pipeline, conditioning: Conditioning, max_tokens: tuple[int, int]
) -> Conditioning:
    """Zero T5 in some rows; in others, have CLIP read an empty text."""
    sequence, pooled = conditioning
    nothing, pooled_nothing = read(pipeline, [""], max_tokens)
    num_clip = max_tokens[0]
    chance = torch.rand(len(sequence), 1)
    is_without_clip = chance > 1 - CLIP_DROPPED
    is_without_t5 = (chance < T5_DROPPED)[:, None]
    clip, t5 = sequence[:, :num_clip], sequence[:, num_clip:]
    clip = torch.where(is_without_clip[:, None], nothing[:, :num_clip], clip)
    t5 = torch.where(is_without_t5, 0.0, t5)
    return torch.cat([clip, t5], dim=1), torch.where(is_without_clip, pooled_nothing, pooled)
