"""Makes the autoencoder of the UNets, with 4 latent channels, from the one with 16.

Stable Diffusion's have 4, and diffusers' classes expect that. The 4 are the principal components
of the 16, each with unit variance; the decoder learns to do without the others.
"""

from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKL

from pixpod_tools.tiny.data import BUCKETS, encode, render_scenes

NUM_CHANNELS = 4
NUM_PICTURES = 1024
LOG_VARIANCE = -5.0
"""Spread of the encoder's distribution, which the image models never see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowing:
    """Maps latents `z` of 16 channels to `project @ (z - mean)`, and back by `expand`."""

    project: torch.Tensor
    expand: torch.Tensor
    mean: torch.Tensor


@torch.no_grad()
def find_narrowing(wide: AutoencoderKL) -> Narrowing:
    """Return the principal components of the latents of training images, not scaled."""
    pictures, _ = render_scenes(replace(BUCKETS[0], num_pictures=NUM_PICTURES))
    latents = encode(wide, pictures) / float(wide.config.scaling_factor)
    flat = latents.transpose(0, 1).flatten(1)
    variances, directions = torch.linalg.eigh(torch.cov(flat))
    deviations, directions = variances[-NUM_CHANNELS:].sqrt(), directions[:, -NUM_CHANNELS:]
    return Narrowing(
        project=directions.T / deviations[:, None],
        expand=directions * deviations,
        mean=flat.mean(dim=1),
    )


@torch.no_grad()
def narrow_vae(wide: AutoencoderKL, narrowing: Narrowing) -> AutoencoderKL:
    """Return an autoencoder of 4 channels; its decoder still has to be trained."""
    narrow = AutoencoderKL.from_config(
        {**wide.config, "latent_channels": NUM_CHANNELS, "scaling_factor": 1.0}
    )
    state = wide.state_dict()
    num_wide = len(narrowing.mean)
    weight, bias = (state[f"encoder.conv_out.{each}"][:num_wide] for each in ("weight", "bias"))
    weight = torch.einsum("nw,wiyx->niyx", narrowing.project, weight)
    bias = narrowing.project @ (bias - narrowing.mean)
    state["encoder.conv_out.weight"] = torch.cat([weight, torch.zeros_like(weight)])
    state["encoder.conv_out.bias"] = torch.cat([bias, torch.full_like(bias, LOG_VARIANCE)])
    weight, bias = state["decoder.conv_in.weight"], state["decoder.conv_in.bias"]
    state["decoder.conv_in.weight"] = torch.einsum("owyx,wn->onyx", weight, narrowing.expand)
    state["decoder.conv_in.bias"] = bias + torch.einsum("owyx,w->o", weight, narrowing.mean)
    narrow.load_state_dict(state)
    return narrow
