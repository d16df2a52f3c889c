"""Trains an image prompt for sd15-tiny: a CLIP image encoder and an IP-Adapter Plus.

With the image, the UNet has to predict what it predicts with the image's caption. Targets without
noise make this so easy that a part of the usual steps is enough. The UNet stays as it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from pixpod.engine.adapters.image_attention import ImageAttention, IpAdapter
from pixpod.engine.loading.extras import HEAD_CHANNELS
from pixpod.families import SD15
from pixpod_tools.tiny import unet
from pixpod_tools.tiny.data import BUCKETS, encode, render_scenes, to_tensor
from pixpod_tools.tiny.scenes import Pixels, Position, Scene, Size
from pixpod_tools.tiny.training import Course, train

MODEL = "sd15-tiny"
ENCODER, ADAPTER = "clip-vision-tiny", "sd15-ip-adapter-tiny"
FILE = "ip-adapter-plus_sd15.safetensors"
COURSE = Course(minutes=30, learning_rate=2e-3, batch_size=24, warm_up_steps=50, averaging=0.99)
TOKEN_MINUTES = 4
"""Time for tokens like those of the caption, which needs no UNet."""
NUM_IMAGES = 8_192
SIZE_PX, PATCH_PX = 64, 16
WIDTH = 64
NUM_LAYERS = 4
"""Layers of the encoder; the adapter sees what the last but one makes."""
NUM_TOKENS = 16
NUM_HEADS, NUM_BLOCKS, FEED_FORWARD = 2, 2, 2
"""Sizes of the resampler, with the ratio of its widths."""
WITHOUT_IMAGE = 0.1
"""Share of rows without an image, which guidance compares with."""
LAYER_WEIGHT = 0.1
"""Weight of the attention layers' outputs in the loss, beside that of the velocity."""
PROMPTS = ("", "a")
"""Texts that say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePrompt:
    """An image encoder, and the adapter that makes tokens of what it sees."""

    encoder: CLIPVisionModelWithProjection
    adapter: IpAdapter

    @property
    def modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.encoder, self.adapter])

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (rows, tokens, channels) of (rows, 3, height, width), which are normalised."""
        states = self.encoder(pixels, output_hidden_states=True).hidden_states
        found: torch.Tensor = self.adapter.projection(states[-2])
        return found


def train_ip_adapter(cache: Path, course: Course) -> None:
    """Train for sd15-tiny in the folder `cache`, and put the parts beside the models."""
    pipeline = DiffusionPipeline.from_pretrained(cache / MODEL, dtype=torch.float32)
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        part.eval().requires_grad_(False)
    prompt = ImagePrompt(encoder=untrained_encoder(), adapter=untrained_adapter(pipeline.unet))
    images, scenes = render_scenes(replace(BUCKETS[0], num_pictures=NUM_IMAGES))
    _train_tokens(prompt, pipeline, normalised(images), scenes, course)
    _train_adapter(prompt, pipeline, images, scenes, course)
    publish(prompt, cache / "extras")


def _train_tokens(
    prompt: ImagePrompt,
    pipeline: StableDiffusionPipeline,
    pixels: torch.Tensor,
    scenes: list[Scene],
    course: Course,
) -> None:
    """Train tokens to be the first of the caption, which names colours and shape only."""
    plain = [replace(each, size=Size.MEDIUM, position=Position.CENTRE) for each in scenes]
    wanted = _read(pipeline, [scene.caption for scene in plain])[:, :NUM_TOKENS]
    course = replace(course, minutes=TOKEN_MINUTES, batch_size=64, checkpoint=None)

    def batch_loss(rng: np.random.Generator) -> torch.Tensor:
        chosen = torch.from_numpy(rng.integers(len(pixels), size=course.batch_size))
        return functional.mse_loss(prompt.tokens(pixels[chosen]), wanted[chosen])

    train(nn.ModuleList([prompt.encoder, prompt.adapter.projection]), course, batch_loss)


def _train_adapter(
    prompt: ImagePrompt,
    pipeline: StableDiffusionPipeline,
    images: Pixels,
    scenes: list[Scene],
    course: Course,
) -> None:
    pixels, latents = normalised(images), encode(pipeline.vae, images)
    captions = _read(pipeline, [scene.caption for scene in scenes])
    without_words = _read(pipeline, list(PROMPTS))
    alphas = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
    ).alphas_cumprod
    pupil = _Watched(prompt.adapter.on_copy_of(pipeline.unet))
    teacher = _Watched(pipeline.unet)  # a copy would have its hooks
    scale = torch.ones(course.batch_size, 1, 1)

    def batch_loss(rng: np.random.Generator) -> torch.Tensor:
        rows = torch.from_numpy(rng.integers(len(latents), size=course.batch_size))
        texts = without_words[rng.integers(len(PROMPTS), size=course.batch_size)]
        is_shown = torch.rand(course.batch_size) >= WITHOUT_IMAGE
        timesteps = unet.draw_timesteps(course.batch_size)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        clean = latents[rows]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * torch.randn_like(clean)
        with torch.no_grad():
            read = torch.where(is_shown[:, None, None], captions[rows], texts)
            wanted = teacher(noisy, timesteps, encoder_hidden_states=read)
        tokens = prompt.tokens(pixels[rows] * is_shown[:, None, None, None])
        shown = {"image_embeds": [tokens, scale]}
        found = pupil(noisy, timesteps, encoder_hidden_states=texts, added_cond_kwargs=shown)
        layers = [
            functional.mse_loss(*pair) / pair[1].var()
            for pair in zip(found.layers, wanted.layers, strict=True)
        ]
        velocity = functional.mse_loss(found.velocity, wanted.velocity)
        return velocity + LAYER_WEIGHT * torch.stack(layers).mean()

    train(prompt.modules, course, batch_loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prediction:
    """A velocity, and what the layers that attend to the prompt have added on the way."""

    velocity: torch.Tensor
    layers: list[torch.Tensor]


class _Watched:
    """A UNet that shows the outputs of its cross-attention."""

    def __init__(self, denoiser: UNet2DConditionModel) -> None:
        self._denoiser = denoiser
        self._layers: list[torch.Tensor] = []
        for each in _cross_attentions(denoiser):
            each.register_forward_hook(self._note)

    def _note(self, module: nn.Module, given: object, output: torch.Tensor) -> None:
        self._layers.append(output)

    def __call__(self, *given: torch.Tensor, **conditions: object) -> _Prediction:
        self._layers.clear()
        velocity = self._denoiser(*given, **conditions).sample
        return _Prediction(velocity=velocity, layers=list(self._layers))


@torch.no_grad()
def _read(pipeline: StableDiffusionPipeline, texts: list[str]) -> torch.Tensor:
    batches = [texts[first : first + 256] for first in range(0, len(texts), 256)]
    return torch.cat([unet.read_sd15(pipeline, batch, 77)[0] for batch in batches])


def untrained_encoder() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        image_size=SIZE_PX,
        patch_size=PATCH_PX,
        projection_dim=WIDTH,
    )
    return CLIPVisionModelWithProjection(config)


def untrained_adapter(denoiser: UNet2DConditionModel) -> IpAdapter:
    """Return an adapter whose keys and values begin as those of the text."""
    projection = IPAdapterPlusImageProjection(
        embed_dims=WIDTH,
        output_dims=denoiser.config.cross_attention_dim,
        hidden_dims=WIDTH,
        depth=NUM_BLOCKS,
        dim_head=HEAD_CHANNELS,
        heads=NUM_HEADS,
        num_queries=NUM_TOKENS,
        ffn_ratio=FEED_FORWARD,
    )
    return IpAdapter(projection, [_like_text(each) for each in _cross_attentions(denoiser)])


def _like_text(attention: Attention) -> ImageAttention:
    key, value = attention.to_k.weight, attention.to_v.weight
    like = ImageAttention(key.shape, value.shape)
    with torch.no_grad():
        like.key.copy_(key)
        like.value.copy_(value)
    return like


def _cross_attentions(denoiser: UNet2DConditionModel) -> Iterator[Attention]:
    for name in denoiser.attn_processors:
        if name.endswith("attn2.processor"):
            yield denoiser.get_submodule(name.removesuffix(".processor"))


def normalised(images: Pixels) -> torch.Tensor:
    """Return count x height x width x 3 as the encoder sees them."""
    spec = SD15.image_prompt
    assert spec is not None
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (spec.mean, spec.std))
    return ((to_tensor(images) + 1) / 2 - mean) / std


def publish(prompt: ImagePrompt, extras: Path) -> None:
    """Write the parts in bf16, in the layout of https://huggingface.co/h94/IP-Adapter."""
    prompt.encoder.to(torch.bfloat16).save_pretrained(extras / ENCODER)
    (extras / ADAPTER).mkdir(parents=True, exist_ok=True)
    save_file(dict(_published(prompt.adapter)), extras / ADAPTER / FILE)


def _published(adapter: IpAdapter) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors by the names that the file has."""
    own = {name: tensor.bfloat16() for name, tensor in adapter.state_dict().items()}
    for name, tensor in own.items():
        if name.startswith("attentions."):
            _, number, part = name.split(".")
            yield f"ip_adapter.{2 * int(number) + 1}.to_{part[0]}_ip.weight", tensor
            continue
        published = f"image_proj.{name.removeprefix('projection.')}"
        for part, replacement in _RESAMPLER.items():
            published = published.replace(part, replacement)
        if published.endswith(".to_k.weight"):
            both = [tensor, own[name.replace("to_k", "to_v")]]
            yield published.replace("to_k", "to_kv"), torch.cat(both)
        elif not published.endswith(".to_v.weight"):
            yield published, tensor


_RESAMPLER: Mapping[str, str] = {
    ".ln0.": ".0.norm1.",
    ".ln1.": ".0.norm2.",
    ".attn.to_out.0.": ".0.to_out.",
    ".attn.to_": ".0.to_",
    ".ff.0.": ".1.0.",
    ".ff.1.net.0.proj.": ".1.1.",
    ".ff.1.net.2.": ".1.3.",
}
"""Parts of names in diffusers' class of the resampler, and those in a published file."""
