"""Puts extras with random weights beside a model: of the published sizes beside a full-size one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from pixpod.engine.adapters.image_attention import ImageAttention, IpAdapter
from pixpod.engine.component_key import extra_key
from pixpod.engine.loading.extras import HEAD_CHANNELS, Redux
from pixpod.engine.model import Component, LoadedExtra, LoadedModel
from pixpod.families import Precision
from pixpod.job import ImagePromptOptions
from pixpod.testing.random_models import build_random_module

FEWER_BLOCKS = {"num_layers": 6, "num_single_layers": 0}
"""Six double blocks, as the ControlNets for FLUX that are used most."""


REFINER = "refiner"
UNET_CHANNELS = 320
REFINER_BLOCKS = {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
}
"""Blocks of stabilityai/stable-diffusion-xl-refiner-1.0, whose UNet takes 4.21 GiB in 16 bits."""

ADAPTER, ENCODER = "adapter", "image-encoder"
NUM_QUERIES, SD15_TEXT = 16, 768
SMALL_ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VIT_H = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 1024,
}
"""The image encoder of h94/IP-Adapter."""

SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
"""The image encoder of black-forest-labs/FLUX.1-Redux-dev."""


def add_random_nets(model: LoadedModel, names: Sequence[str]) -> None:
    """Add a ControlNet for each of these names."""
    spec = model.spec.family.controlnet
    assert spec is not None, "only families with ControlNets have such stacks"
    net_class = getattr(diffusers, spec.class_name)
    for name in names:
        _add(model, name, lambda: _net_like(net_class, model.denoiser))


def add_random_refiner(model: LoadedModel) -> None:
    config = refiner_config(model.denoiser.config, model.components["text_encoder_2"].config)
    _add(model, REFINER, lambda: UNet2DConditionModel.from_config(config))


def add_random_image_prompt(model: LoadedModel, num_images: int) -> ImagePromptOptions:
    """Add Redux for FLUX, else an IP-Adapter Plus with ViT-H; returns a request's use of it."""
    spec, is_small = model.spec.family.image_prompt, _is_small(model)
    assert spec is not None, "only families with image prompts have such stacks"
    if spec.extends_text:
        side, patch = (56, 14) if is_small else (384, 14)
        _add(model, ADAPTER, lambda: _redux(model.denoiser, side, patch, is_small=is_small))
        tokens, encoder = (side // patch) ** 2, None
    else:
        side, tokens, encoder = 224, NUM_QUERIES, ENCODER
        _add(model, ENCODER, lambda: _vit_h(is_small=is_small))
        _add(model, ADAPTER, lambda: _ip_adapter(model.denoiser, is_small=is_small))
    return ImagePromptOptions(
        adapter=ADAPTER,
        encoder=encoder,
        num_images=num_images,
        size_px=side,
        text_tokens=num_images * tokens if spec.extends_text else 0,
        scale=0.7,
    )


def _add(model: LoadedModel, name: str, build: Callable[[], nn.Module]) -> None:
    if name not in model.extras:
        module = build_random_module(build, model.device, model.denoiser.dtype)
        key = extra_key(name, Precision(model.identity.precision))
        model.extras[name] = LoadedExtra(module=module, key=key)


def _is_small(model: LoadedModel) -> bool:
    return model.spec.name.endswith("-tiny")


def refiner_config(unet: Mapping[str, Any], text: Any) -> dict[str, Any]:  # noqa: ANN401 - untyped
    """Return the config of a refiner: it reads the second text encoder and an aesthetic score."""
    width = 5 * unet["addition_time_embed_dim"] + text.projection_dim
    blocks = REFINER_BLOCKS if unet["block_out_channels"][0] == UNET_CHANNELS else {}
    return {
        **unet,
        **blocks,
        "cross_attention_dim": text.hidden_size,
        "projection_class_embeddings_input_dim": width,
    }


def _net_like(net_class: type[Any], denoiser: Component) -> Any:  # noqa: ANN401 - untyped
    if net_class is diffusers.FluxControlNetModel:
        return net_class.from_config({**denoiser.config, **FEWER_BLOCKS})
    return net_class.from_unet(denoiser, load_weights_from_unet=False)


def _redux(transformer: Component, side: int, patch: int, *, is_small: bool) -> Redux:
    sizes = SMALL_ENCODER if is_small else SIGLIP
    encoder = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=side, patch_size=patch))
    width = transformer.config.joint_attention_dim
    embedder = ReduxImageEncoder(redux_dim=sizes["hidden_size"], txt_in_features=width)
    return Redux(encoder, embedder)


def _vit_h(*, is_small: bool) -> CLIPVisionModelWithProjection:
    sizes = {**SMALL_ENCODER, "patch_size": 56} if is_small else VIT_H
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, image_size=224))


def _ip_adapter(unet: Component, *, is_small: bool) -> IpAdapter:
    text = unet.config.cross_attention_dim
    heads = 1 if is_small else (12 if text == SD15_TEXT else 20)
    projection = IPAdapterPlusImageProjection(
        embed_dims=(SMALL_ENCODER if is_small else VIT_H)["hidden_size"],
        output_dims=text,
        hidden_dims=heads * HEAD_CHANNELS,
        dim_head=HEAD_CHANNELS,
        heads=heads,
        num_queries=NUM_QUERIES,
    )
    attentions = [
        unet.get_submodule(name.removesuffix(".processor"))
        for name in unet.attn_processors
        if name.endswith("attn2.processor")
    ]
    return IpAdapter(
        projection,
        [ImageAttention(attn.to_k.weight.shape, attn.to_v.weight.shape) for attn in attentions],
    )
