"""Models of real architectures with random weights, made on the device without any file.

Time and memory do not depend on the weights, as long as no value is special; images are noise.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import diffusers
import torch
import transformers
from torch import nn

from pixpod.catalog import ModelSpec
from pixpod.engine.component_key import own_keys
from pixpod.engine.loading.components import DTYPE
from pixpod.engine.model import LoadedModel, Tokenizer
from pixpod.engine.precision.quantization import convert
from pixpod.families import ComponentSpec, FamilySpec, Precision
from pixpod.job import ModelIdentity

Config = Mapping[str, object]

STD = 0.02
"""Spread of the weights: activations of all full-size models stay finite, also in float16."""


class Architecture(Protocol):
    """Configurations of a pipeline's components by name, as their classes take them."""

    @property
    def family(self) -> FamilySpec: ...
    @property
    def components(self) -> Mapping[str, Config]: ...
    @property
    def scheduler(self) -> Config: ...


def build_random_model(
    architecture: Architecture,
    tokenizer_for: Callable[[str], Tokenizer],
    spec: ModelSpec,
    precision: Precision,
    device: torch.device,
) -> LoadedModel:
    """Return a model with the model's default scheduler, quantized as a worker does it.

    `tokenizer_for` returns a tokenizer for the class of a text encoder. The weights are a function
    of architecture, device and precision.
    """
    torch.manual_seed(0)
    family, clip = architecture.family, tokenizer_for("CLIPTextModel")
    components = {
        each.name: build_random_component(
            each, architecture.components[each.name], clip, device, DTYPE[precision]
        )
        for each in family.components
    }
    if precision.is_8_bit:
        convert(components[family.denoiser], precision, device, family.quantization)
    scheduler = family.schedulers[spec.defaults.scheduler]
    return LoadedModel(
        spec=spec,
        identity=ModelIdentity(
            name=spec.name, revision="random", precision=precision, weights="random"
        ),
        device=device,
        components=components,
        keys=own_keys(spec, precision),
        tokenizers={
            name.replace("text_encoder", "tokenizer"): tokenizer_for(
                family.component(name).class_name
            )
            for name in family.text_encoders
        },
        scheduler_config=getattr(diffusers, scheduler.class_name)
        .from_config(dict(architecture.scheduler))
        .config,
        pipeline_options=family.pipeline_options,
    )


def build_random_component(
    component: ComponentSpec,
    config: Config,
    clip: Tokenizer,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    """Return a component with weights N(0, STD); its class initialises biases and norms."""
    library = diffusers if component.library == "diffusers" else transformers
    module_class = getattr(library, component.class_name)

    def build() -> Any:  # noqa: ANN401 - transformers is untyped
        if component.library == "diffusers":
            return module_class(**config)
        options = dict(config)
        if component.class_name.startswith("CLIP"):  # it pools at its tokenizer's end token
            options |= {
                name: getattr(clip, name)
                for name in ("bos_token_id", "eos_token_id", "pad_token_id")
            }
        return module_class(module_class.config_class(**options))

    return build_random_module(build, device, dtype)


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


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create parameters in their final type: FLUX in float32 first would not fit on a GPU."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
