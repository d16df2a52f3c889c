"""Pipelines of real architectures with random weights, made on the device without any file.

Time and memory do not depend on what the weights are, as long as they are no special values;
pictures are noise. Knows nothing of scenarios.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

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
)

from pixpod.catalog import Family, ModelSpec, Precision
from pixpod.engine.loading.components import DTYPE
from pixpod.engine.loading.pipelines import LoadedModel, Pipeline
from pixpod.engine.memory.needs import own_parts
from pixpod.engine.precision.quantization import convert
from pixpod.job import ModelIdentity
from pixpod_tools.bake.architectures import Architecture, Config
from pixpod_tools.bake.character_tokenizers import clip_tokenizer, t5_tokenizer

Quantize = Callable[[nn.Module, torch.device], None]

STD = 0.02
"""Spread of the weights: activations of all full-size models stay finite, also in float16."""


def build_random_model(
    architecture: Architecture,
    spec: ModelSpec,
    precision: Precision,
    device: torch.device,
    quantize: Quantize | None = None,
) -> LoadedModel:
    """The same weights for the same device and precision, with the model's default scheduler.

    `quantize` is how a denoiser comes to its 8 bits; None is as a worker does it.
    """
    torch.manual_seed(0)
    pipe = _BUILD[architecture.family](architecture, device, DTYPE[precision])
    pipe.scheduler = getattr(diffusers, spec.defaults.scheduler)(**architecture.scheduler)
    if precision.is_8_bit:
        denoiser = getattr(pipe, spec.family.denoiser)
        if quantize is None:
            convert(denoiser, precision, device)
        else:
            quantize(denoiser, device)
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
    """Weights N(0, STD); biases and norms as the class initialises them."""
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


def _build_flux(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> Pipeline:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    clip_config = _clip_config(architecture.text_encoder, clip)
    assert architecture.second_text_encoder is not None
    t5_config = T5Config(**architecture.second_text_encoder)
    return FluxPipeline(
        scheduler=None,
        tokenizer=clip,
        tokenizer_2=t5,
        text_encoder=build_random_module(lambda: CLIPTextModel(clip_config), device, dtype),
        text_encoder_2=build_random_module(lambda: T5EncoderModel(t5_config), device, dtype),
        transformer=build_flux_transformer(architecture.denoiser, device, dtype),
        vae=build_random_vae(architecture, device, dtype),
    )


def _build_sdxl(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> Pipeline:
    clip = clip_tokenizer()
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


def _build_sd15(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> Pipeline:
    clip = clip_tokenizer()
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


_BUILD: Mapping[Family, Callable[[Architecture, torch.device, torch.dtype], Pipeline]] = {
    Family.FLUX: _build_flux,
    Family.SDXL: _build_sdxl,
    Family.SD15: _build_sd15,
}


def _clip_config(config: Config, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """CLIP pools at its end token, which must be the tokenizer's."""
    return CLIPTextConfig(
        **config,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Parameters are made in their final type: FLUX in float32 first would not fit on a card."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
