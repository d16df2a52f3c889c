"""Trains an image prompt for flux-tiny: SigLIP, and Redux's encoder, which makes tokens of T5's.

The tokens are those that T5 has for the caption of the image, so that no denoiser is needed here.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import nn
from torch.nn import functional
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from pixpod_tools.tiny import flux
from pixpod_tools.tiny.data import BUCKETS, render_scenes, to_tensor
from pixpod_tools.tiny.scenes import Scene
from pixpod_tools.tiny.training import Course, train

NAME = "flux-redux-tiny"
COURSE = Course(minutes=3, learning_rate=2e-3, batch_size=64, warm_up_steps=50)
SIZE_PX, PATCH_PX = 64, 16
TOKENS = (SIZE_PX // PATCH_PX) ** 2
NUM_IMAGES = 8_192
WIDTH = 64


def train_redux(cache: Path, course: Course) -> None:
    """Train for flux-tiny in the folder `cache`, and put the parts beside the models."""
    pipeline = DiffusionPipeline.from_pretrained(cache / "flux-tiny", dtype=torch.float32)
    encoder, embedder = untrained_encoder(), untrained_embedder(pipeline)
    images, scenes = render_scenes(replace(BUCKETS[0], num_pictures=NUM_IMAGES))
    pixels, tokens = to_tensor(images), _tokens_of(pipeline, scenes)

    def batch_loss(rng: np.random.Generator) -> torch.Tensor:
        chosen = torch.from_numpy(rng.integers(len(pixels), size=course.batch_size))
        seen = encoder(pixels[chosen]).last_hidden_state
        return functional.mse_loss(embedder(seen).image_embeds, tokens[chosen])

    train(nn.ModuleList([encoder, embedder]), course, batch_loss)
    publish(encoder, embedder, cache / "extras" / NAME)


def untrained_encoder() -> SiglipVisionModel:
    config = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE_PX,
        patch_size=PATCH_PX,
    )
    return SiglipVisionModel(config)


def untrained_embedder(pipeline: FluxPipeline) -> ReduxImageEncoder:
    width = pipeline.text_encoder_2.config.d_model
    return ReduxImageEncoder(redux_dim=WIDTH, txt_in_features=width)


@torch.no_grad()
def _tokens_of(pipeline: FluxPipeline, scenes: list[Scene]) -> torch.Tensor:
    """Return the first tokens of the scenes' captions, which name their colours and shapes."""
    batches = [scenes[first : first + 256] for first in range(0, len(scenes), 256)]
    read = [
        flux.read(pipeline, [_plain_caption(scene) for scene in batch], max_tokens=48)[0]
        for batch in batches
    ]
    return torch.cat(read)[:, :TOKENS]


def _plain_caption(scene: Scene) -> str:
    return Scene(colour=scene.colour, shape=scene.shape, background=scene.background).caption


def publish(encoder: SiglipVisionModel, embedder: ReduxImageEncoder, out: Path) -> None:
    """Write the parts in bf16, in the layout of the repository of FLUX.1 Redux."""
    encoder.to(torch.bfloat16).save_pretrained(out / "image_encoder")
    embedder.to(torch.bfloat16).save_pretrained(out / "image_embedder")
    processor = SiglipImageProcessor(size={"height": SIZE_PX, "width": SIZE_PX})
    processor.save_pretrained(out / "feature_extractor")
