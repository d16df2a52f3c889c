"""Training images and their latents, in three sizes; rendered from a seed and never stored."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL

from pixpod_tools.tiny.scenes import Pixels, Scene, draw, sample_training_scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Images of one size; `share` is the share of training batches that come from it."""

    width: int
    height: int
    num_pictures: int
    share: float
    seed: int


BUCKETS = (
    Bucket(width=64, height=64, num_pictures=16_384, share=0.6, seed=7),
    Bucket(width=96, height=64, num_pictures=4_096, share=0.2, seed=8),
    Bucket(width=64, height=96, num_pictures=4_096, share=0.2, seed=9),
)


def render_scenes(bucket: Bucket) -> tuple[Pixels, list[Scene]]:
    """Return training images of one size as count x height x width x 3, and their scenes."""
    rng = np.random.default_rng(bucket.seed)
    scenes = [sample_training_scene(rng) for _ in range(bucket.num_pictures)]
    pictures = [draw(scene, width=bucket.width, height=bucket.height, rng=rng) for scene in scenes]
    return np.stack(pictures), scenes


def to_tensor(pictures: Pixels) -> torch.Tensor:
    """Convert count x height x width x 3, 0..255 to count x 3 x height x width, -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentBucket:
    """Scaled latents (count x channels x height/8 x width/8) of one image size."""

    bucket: Bucket
    latents: torch.Tensor
    scenes: list[Scene]


def load_latents(vae: AutoencoderKL) -> list[LatentBucket]:
    """Return the latents of every bucket."""
    return [_load_bucket(vae, bucket) for bucket in BUCKETS]


def _load_bucket(vae: AutoencoderKL, bucket: Bucket) -> LatentBucket:
    pictures, scenes = render_scenes(bucket)
    return LatentBucket(bucket=bucket, latents=encode(vae, pictures), scenes=scenes)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Pixels, batch_size: int = 64) -> torch.Tensor:
    """Encode images as scaled latents, as the transformer and the UNets see them."""
    batches = torch.split(to_tensor(pictures), batch_size)
    modes = [vae.encode(batch).latent_dist.mode() for batch in batches]
    return torch.cat(modes) * float(vae.config.scaling_factor)


def sample_batch(
    buckets: list[LatentBucket], batch_size: int, rng: np.random.Generator
) -> tuple[torch.Tensor, list[Scene], Bucket]:
    """Return a batch of latents of one image size, and the scenes they show."""
    shares = [bucket.bucket.share for bucket in buckets]
    chosen = buckets[int(rng.choice(len(buckets), p=shares))]
    indices = rng.integers(len(chosen.latents), size=batch_size)
    scenes = [chosen.scenes[index] for index in indices]
    return chosen.latents[torch.from_numpy(indices)], scenes, chosen.bucket
