"""Pipelines of real architectures with random weights, made on the device without any file.

Time and memory do not depend on the weights, as long as no value is special; images are noise.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from pixpod.catalog import ModelSpec
from pixpod.families import FAMILIES, Precision
from pixpod.engine.loading.components import DTYPE
from pixpod.engine.loading.model_loading import LoadedModel, Pipeline
from pixpod.engine.memory.needs import own_parts
from pixpod.engine.precision.quantization import convert
from pixpod.job import ModelIdentity

Config = Mapping[str, object]

STD = 0.02
"""Spread of the weights: activations of all full-size models stay finite, also in float16."""


class Architecture(Protocol):
    """Configurations of a pipeline's components, as their classes take them.

    `second_text_encoder` is T5 for FLUX and the larger CLIP for SDXL; SD 1.5 has none.
    """

    @property
    def family(self) -> Family: ...
    @property
    def denoiser(self) -> Config: ...
    @property
    def vae(self) -> Config: ...
    @property
    def text_encoder(self) -> Config: ...
    @property
    def second_text_encoder(self) -> Config | None: ...
    @property
    def scheduler(self) -> Config: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizers:
    """A pipeline's tokenizers; only FLUX uses T5's."""

    clip: CLIPTokenizer
    t5: T5Tokenizer


def build_random_model(
    architecture: Architecture,
    tokenizers: Tokenizers,
    spec: ModelSpec,
    precision: Precision,
    device: torch.device,
) -> LoadedModel:
    """Return a model with the model's default scheduler, quantized as a worker does it.

    The weights are a function of architecture, device and precision.
    """
    torch.manual_seed(0)
    build = _BUILD[architecture.family]
    pipe = build(architecture, tokenizers, device, DTYPE[precision])
    pipe.scheduler = getattr(diffusers, spec.defaults.scheduler)(**architecture.scheduler)
    if precision.is_8_bit:
        convert(getattr(pipe, spec.family.denoiser), precision, device)
    pipe.set_progress_bar_config(disable=True)
    identity = ModelIdentity(
        name=spec.name, revision="random", precision=precision, weights="random"
    )
    return LoadedModel(
        spec=spec,
        identity=identity,
        device=device,
        pipe=pipe,
        parts=own_parts(spec, precision),
        scheduler_config=pipe.scheduler.config,
    )


def build_random_module(
    build: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """Return a module with weights N(0, STD); its class initialises biases and norms."""
    with device, _default_dtype(dtype):
        module = build().eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=STD)
    return module


def build_flux_transformer(
    config: Config, device: torch.device, dtype: torch.dtype
) -> FluxTransformer2DModel:
    return build_random_module(lambda: FluxTransformer2DModel(**config), device, dtype)


def build_random_vae(
    architecture: Architecture, device: torch.device, dtype: torch.dtype
) -> AutoencoderKL:
    return build_random_module(lambda: AutoencoderKL(**architecture.vae), device, dtype)


def _build_flux(
    architecture: Architecture, tokenizers: Tokenizers, device: torch.device, dtype: torch.dtype
) -> Pipeline:
    clip = tokenizers.clip
    clip_config = _clip_config(architecture.text_encoder, clip)
    assert architecture.second_text_encoder is not None
    t5_config = T5Config(**architecture.second_text_encoder)
    return FluxPipeline(
        scheduler=None,
        tokenizer=clip,
        tokenizer_2=tokenizers.t5,
        text_encoder=build_random_module(lambda: CLIPTextModel(clip_config), device, dtype),
        text_encoder_2=build_random_module(lambda: T5EncoderModel(t5_config), device, dtype),
        transformer=build_flux_transformer(architecture.denoiser, device, dtype),
        vae=build_random_vae(architecture, device, dtype),
    )


def _build_sdxl(
    architecture: Architecture, tokenizers: Tokenizers, device: torch.device, dtype: torch.dtype
) -> Pipeline:
    clip = tokenizers.clip
    assert architecture.second_text_encoder is not None
    first = _clip_config(architecture.text_encoder, clip)
    second = _clip_config(architecture.second_text_encoder, clip)
    unet = architecture.denoiser
    return StableDiffusionXLPipeline(
        scheduler=None,
        tokenizer=clip,
        tokenizer_2=clip,
        text_encoder=build_random_module(lambda: CLIPTextModel(first), device, dtype),
        text_encoder_2=build_random_module(
            lambda: CLIPTextModelWithProjection(second), device, dtype
        ),
        unet=build_random_module(lambda: UNet2DConditionModel(**unet), device, dtype),
        vae=build_random_vae(architecture, device, dtype),
        add_watermarker=False,
    )


def _build_sd15(
    architecture: Architecture, tokenizers: Tokenizers, device: torch.device, dtype: torch.dtype
) -> Pipeline:
    clip = tokenizers.clip
    text_config = _clip_config(architecture.text_encoder, clip)
    unet = architecture.denoiser
    return StableDiffusionPipeline(
        scheduler=EulerDiscreteScheduler(**architecture.scheduler),
        tokenizer=clip,
        text_encoder=build_random_module(lambda: CLIPTextModel(text_config), device, dtype),
        unet=build_random_module(lambda: UNet2DConditionModel(**unet), device, dtype),
        vae=build_random_vae(architecture, device, dtype),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


_Build = Callable[[Architecture, Tokenizers, torch.device, torch.dtype], Pipeline]

_BUILD: Mapping[Family, _Build] = {
    FAMILIES["flux"]: _build_flux,
    FAMILIES["sdxl"]: _build_sdxl,
    FAMILIES["sd15"]: _build_sd15,
}


def _clip_config(config: Config, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Add the tokenizer's special tokens: CLIP pools at its end token."""
    return CLIPTextConfig(
        **config,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create parameters in their final type: FLUX in float32 first would not fit on a GPU."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
