"""Trains ControlNets for the tiny models: copies of the denoiser that see a control image.

The denoiser stays as it is. Half of the captions name no shape, so that the control image decides.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    DDPMScheduler,
    DiffusionPipeline,
    FluxControlNetModel,
    FluxPipeline,
)
from torch import nn
from torch.nn import functional

from pixpod_tools.tiny import flux, unet
from pixpod_tools.tiny.captions import vary
from pixpod_tools.tiny.controls import CONTROLS, MIN_CONTRAST, contrast, without_shape
from pixpod_tools.tiny.data import BUCKETS, Bucket, encode, render_scenes, to_tensor
from pixpod_tools.tiny.scenes import Pixels, Scene
from pixpod_tools.tiny.training import Course, train

COURSE = Course(minutes=9, learning_rate=1e-3, batch_size=24, warm_up_steps=50, averaging=0.99)
DATA_SHARE = 0.2
"""Share of the usual training images: a ControlNet learns little about colours."""
WITHOUT_SHAPE = 0.5
EMBEDDING_CHANNELS = (16, 24, 32, 48)
NUM_FLUX_LAYERS, NUM_FLUX_SINGLE_LAYERS = 2, 1
_TEXT_TOKENS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlledBucket:
    """Latents of images of one size, the controls as the net sees them, and the scenes."""

    bucket: Bucket
    latents: torch.Tensor
    controls: torch.Tensor
    scenes: list[Scene]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A batch of latents of one image size with their controls and captions."""

    latents: torch.Tensor
    controls: torch.Tensor
    captions: list[str]
    bucket: Bucket


Prepare = Callable[[DiffusionPipeline, Pixels], torch.Tensor]
"""Converts control images (count x height x width x 3) to what a net sees."""


def load_controlled(
    pipeline: DiffusionPipeline, control: str, prepare: Prepare
) -> list[ControlledBucket]:
    """Render images of each size, and keep those whose colours differ enough to have edges."""
    return [_load_bucket(pipeline, control, prepare, bucket) for bucket in _buckets()]


def _buckets() -> Iterator[Bucket]:
    for bucket in BUCKETS:
        yield replace(bucket, num_pictures=int(bucket.num_pictures * DATA_SHARE))


def _load_bucket(
    pipeline: DiffusionPipeline, control: str, prepare: Prepare, bucket: Bucket
) -> ControlledBucket:
    rendered = zip(*render_scenes(bucket), strict=True)
    kept = [
        (image, scene)
        for image, scene in rendered
        if contrast(scene.colour, scene.background) >= MIN_CONTRAST
    ]
    images, scenes = np.stack([image for image, _ in kept]), [scene for _, scene in kept]
    maps = np.stack([CONTROLS[control](image, scene) for image, scene in kept])
    return ControlledBucket(
        bucket=bucket,
        latents=encode(pipeline.vae, images),
        controls=prepare(pipeline, maps),
        scenes=scenes,
    )


def prepare_unet(pipeline: DiffusionPipeline, images: Pixels) -> torch.Tensor:
    """Return pixels of 0 to 1: the net has an encoder of its own."""
    return (to_tensor(images) + 1) / 2


def prepare_flux(pipeline: DiffusionPipeline, images: Pixels) -> torch.Tensor:
    """Return latents: FLUX's nets see control images through the VAE."""
    return encode(pipeline.vae, images)


def untrained_unet_net(pipeline: DiffusionPipeline) -> ControlNetModel:
    return ControlNetModel.from_unet(
        pipeline.unet, conditioning_embedding_out_channels=EMBEDDING_CHANNELS
    )


def untrained_flux_net(pipeline: DiffusionPipeline) -> FluxControlNetModel:
    config = pipeline.transformer.config
    return FluxControlNetModel.from_transformer(
        pipeline.transformer,
        num_layers=NUM_FLUX_LAYERS,
        num_single_layers=NUM_FLUX_SINGLE_LAYERS,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
    )


def train_unet_net(
    pipeline: DiffusionPipeline,
    condition: unet.Condition,
    net: ControlNetModel,
    buckets: list[ControlledBucket],
    course: Course,
) -> None:
    """Train a net in place."""
    alphas = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
    ).alphas_cumprod
    _freeze(pipeline)

    def batch_loss(rng: np.random.Generator) -> torch.Tensor:
        batch = _sample(buckets, course.batch_size, rng)
        with torch.no_grad():
            conditioning = condition(pipeline, batch.captions, batch.bucket)
        timesteps = unet.draw_timesteps(course.batch_size)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn_like(batch.latents)
        noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * batch.latents
        down, middle = net(
            noisy, timesteps, controlnet_cond=batch.controls, return_dict=False, **conditioning
        )
        predicted = pipeline.unet(
            noisy,
            timesteps,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            **conditioning,
        ).sample
        return functional.mse_loss(predicted, velocity)

    train(net, course, batch_loss)


def train_flux_net(
    pipeline: FluxPipeline,
    net: FluxControlNetModel,
    buckets: list[ControlledBucket],
    course: Course,
) -> None:
    """Train a net in place."""
    _freeze(pipeline)

    def batch_loss(rng: np.random.Generator) -> torch.Tensor:
        batch = _sample(buckets, course.batch_size, rng)
        with torch.no_grad():
            sequence, pooled = flux.read(pipeline, batch.captions, _TEXT_TOKENS)
        clean = FluxPipeline._pack_latents(batch.latents, *batch.latents.shape)
        noise = torch.randn_like(clean)
        sigma = flux.draw_sigmas(course.batch_size)
        weight = sigma[:, None, None]
        height, width = batch.latents.shape[-2] // 2, batch.latents.shape[-1] // 2
        shared: dict[str, Any] = {
            "hidden_states": (1 - weight) * clean + weight * noise,
            "timestep": sigma,
            "guidance": 1 + 6 * torch.rand(course.batch_size),
            "pooled_projections": pooled,
            "encoder_hidden_states": sequence,
            "txt_ids": torch.zeros(_TEXT_TOKENS, 3),
            "img_ids": FluxPipeline._prepare_latent_image_ids(
                1, height, width, torch.device("cpu"), torch.float32
            ),
            "return_dict": False,
        }
        control = FluxPipeline._pack_latents(batch.controls, *batch.controls.shape)
        blocks, single_blocks = net(controlnet_cond=control, **shared)
        velocity = pipeline.transformer(
            controlnet_block_samples=blocks,
            controlnet_single_block_samples=single_blocks,
            **shared,
        )[0]
        return functional.mse_loss(velocity, noise - clean)

    train(net, course, batch_loss)


def _freeze(pipeline: DiffusionPipeline) -> None:
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)


def _sample(buckets: list[ControlledBucket], batch_size: int, rng: np.random.Generator) -> Sample:
    shares = [each.bucket.share for each in buckets]
    chosen = buckets[int(rng.choice(len(buckets), p=shares))]
    indices = rng.integers(len(chosen.latents), size=batch_size)
    rows = torch.from_numpy(indices)
    return Sample(
        latents=chosen.latents[rows],
        controls=chosen.controls[rows],
        captions=[_caption(chosen.scenes[index], rng) for index in indices],
        bucket=chosen.bucket,
    )


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    return without_shape(scene) if rng.random() < WITHOUT_SHAPE else vary(scene, rng)
