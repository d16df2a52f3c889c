"""Models of real architectures with random weights, made on the device without any file.

Time and memory do not depend on the weights, as long as no value is special; images are noise.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTokenizer, T5Tokenizer

from pixpod.catalog import ModelSpec
from pixpod.engine.component_key import own_keys
from pixpod.engine.loading.components import DTYPE
from pixpod.engine.model import Component, LoadedModel
from pixpod.engine.precision.quantization import convert
from pixpod.families import ComponentSpec, FamilySpec, Precision
from pixpod.job import ModelIdentity

Config = Mapping[str, object]

STD = 0.02
"""Spread of the weights: activations of all full-size models stay finite, also in float16."""


class Architecture(Protocol):
    """Configurations of a pipeline's components, as their classes take them.

    `second_text_encoder` is T5 for FLUX and the larger CLIP for SDXL; SD 1.5 has none.
    """

    @property
    def family(self) -> FamilySpec: ...
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
    """Return a model that is quantized as a worker does it.

    The weights are a function of architecture, device and precision.
    """
    torch.manual_seed(0)
    family = architecture.family
    configs = _configs(architecture)
    components = {
        each.name: _build_component(each, configs[each.name], tokenizers.clip, precision, device)
        for each in family.components
    }
    if precision.is_8_bit:
        convert(components[family.denoiser], precision, device, family.quantization)
    scheduler = family.schedulers[spec.defaults.scheduler].class_name
    identity = ModelIdentity(
        name=spec.name, revision="random", precision=precision, weights="random"
    )
    return LoadedModel(
        spec=spec,
        identity=identity,
        device=device,
        components=components,
        keys=own_keys(spec, precision),
        tokenizers={
            name.replace("text_encoder", "tokenizer"): tokenizers.clip
            if _is_clip(family.component(name))
            else tokenizers.t5
            for name in family.text_encoders
        },
        scheduler_config=getattr(diffusers, scheduler)(**architecture.scheduler).config,
        pipeline_options=family.pipeline_options,
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


def _configs(architecture: Architecture) -> dict[str, Config]:
    """Return the configuration of each component by its name."""
    family = architecture.family
    encoders = (architecture.text_encoder, architecture.second_text_encoder)
    found = dict(zip(family.text_encoders, encoders, strict=False))
    found |= {family.denoiser: architecture.denoiser, family.vae: architecture.vae}
    return {name: config for name, config in found.items() if config is not None}


def _build_component(
    component: ComponentSpec,
    config: Config,
    tokenizer: CLIPTokenizer,
    precision: Precision,
    device: torch.device,
) -> Component:
    library = {"diffusers": diffusers, "transformers": transformers}[component.library]
    module_class = getattr(library, component.class_name)

    def build() -> nn.Module:
        module: nn.Module
        if component.library == "diffusers":
            module = module_class(**config)
        else:
            special = _special_tokens(tokenizer) if _is_clip(component) else {}
            module = module_class(module_class.config_class(**{**config, **special}))
        return module

    return build_random_module(build, device, DTYPE[precision])


def _is_clip(component: ComponentSpec) -> bool:
    return component.class_name.startswith("CLIP")


def _special_tokens(tokenizer: CLIPTokenizer) -> Config:
    """Return the ids of a tokenizer's special tokens: CLIP pools at its end token."""
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create parameters in their final type: FLUX in float32 first would not fit on a GPU."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
