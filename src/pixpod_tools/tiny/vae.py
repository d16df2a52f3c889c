"""Trains the autoencoder that all three tiny checkpoints share: 16 channels, 8 times smaller."""

import numpy as np
import torch
from diffusers import AutoencoderKL

from pixpod_tools.tiny.data import BUCKETS, encode, render_scenes, to_tensor
from pixpod_tools.tiny.training import Course, train

COURSE = Course(
    minutes=5,
    learning_rate=6e-4,  # 2e-3 learns no colours: the loss stays where it is until it decays
    batch_size=8,
    weight_decay=1e-4,
    warm_up_steps=50,
    averaging=0.98,
)
KL_WEIGHT = 2e-3
SHARES = (0.8, 0.1, 0.1)
"""Share of batches from each of `BUCKETS`; larger images do not teach a convolution more."""


def train_vae(vae: AutoencoderKL, course: Course, *, decoder_only: bool = False) -> None:
    """Train in place; the scaling factor makes latents of unit variance.

    With `decoder_only` latents do not change, so that image models trained on them still fit.
    """
    vae.encoder.requires_grad_(not decoder_only)
    vae.register_to_config(scaling_factor=1.0)
    pictures_of = [to_tensor(render_scenes(bucket)[0]) for bucket in BUCKETS]

    def batch_loss(rng: np.random.Generator) -> torch.Tensor:
        chosen = pictures_of[int(rng.choice(len(pictures_of), p=SHARES))]
        pictures = chosen[torch.from_numpy(rng.integers(len(chosen), size=course.batch_size))]
        posterior = vae.encode(pictures).latent_dist
        latents = posterior.sample()
        decoded = vae.decode(latents).sample
        kl = posterior.kl().mean() / latents[0].numel()
        error = (decoded - pictures).abs() * _weights(pictures)
        loss: torch.Tensor = (error + 0.5 * error.square()).mean() + KL_WEIGHT * kl
        return loss

    train(vae, course, batch_loss)
    latents = encode(vae, render_scenes(BUCKETS[0])[0][:1024])
    # Stable Diffusion pipelines have no shift_factor. The mean is under 0.05, so none is needed.
    vae.register_to_config(scaling_factor=1.0 / latents.std().item(), shift_factor=0.0)


def _weights(pictures: torch.Tensor) -> torch.Tensor:
    """Return weights in which shapes, being smaller than backgrounds, count three times: otherwise
    they would get their colours last.
    """
    corner = pictures[:, :, :1, :1]
    is_shape = (pictures - corner).abs().amax(dim=1, keepdim=True) > 0.1
    return 1 + 2 * is_shape.float()
