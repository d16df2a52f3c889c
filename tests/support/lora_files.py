"""LoRA files for the tiny models, good ones and ones that must be refused, as bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import safetensors.torch
import torch

Tensors = dict[str, torch.Tensor]

SDXL_LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
SDXL_KOHYA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
FLUX_LAYER = "transformer.transformer_blocks.0.attn.to_q"
FLUX_KOHYA = "lora_unet_double_blocks_0_img_attn_qkv"


def pair(layer: str, shape: tuple[int, int], rank: int = 4, *, seed: int = 0) -> Tensors:
    """A pair in diffusers' names for a Linear layer of (outputs, inputs)."""
    return _pair(f"{layer}.lora_A.weight", f"{layer}.lora_B.weight", shape, rank, seed)


def kohya_pair(layer: str, shape: tuple[int, int], rank: int = 4, *, seed: int = 0) -> Tensors:
    """A pair in kohya's names, with an alpha of half of the rank."""
    named = _pair(f"{layer}.lora_down.weight", f"{layer}.lora_up.weight", shape, rank, seed)
    return {**named, f"{layer}.alpha": torch.tensor(rank / 2)}


def _pair(down: str, up: str, shape: tuple[int, int], rank: int, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs = shape
    return {
        down: torch.randn(rank, inputs, generator=generator) * 0.3,
        up: torch.randn(outputs, rank, generator=generator) * 0.3,
    }


def file_of(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    tensors = {name: each.contiguous() for name, each in tensors.items()}
    return safetensors.torch.save(tensors, metadata=dict(metadata) if metadata else None)


@dataclass(frozen=True, kw_only=True)
class BadLora:
    """A file that `model` must refuse, and a part of why. `width` is that of the model's layers."""

    id: str
    reason: str
    build: Callable[[int], bytes]
    model: str = "sdxl-tiny"


def _bad(id, reason, build, model="sdxl-tiny"):
    def as_bytes(width):
        made = build(width)
        return made if isinstance(made, bytes) else file_of(made)

    return BadLora(id=id, reason=reason, build=as_bytes, model=model)


def _good(width):
    return pair(SDXL_LAYER, (width, width))


def _with(name, tensor):
    return lambda width: {**_good(width), name: tensor(width)}


def _without(part):
    return lambda width: {
        name: each for name, each in _good(width).items() if f"lora_{part}" not in name
    }


def _only(*names):
    return lambda width: {name: torch.ones(4, 4) for name in names}


def _changed(half, change):
    def build(width):
        return {
            name: change(each) if f"lora_{half}" in name else each
            for name, each in _good(width).items()
        }

    return build


def _set(value):
    def change(tensor):
        changed = tensor.clone()
        changed[0, 0] = value
        return changed

    return change


BAD_LORAS = (
    # what is no safetensors file
    _bad("empty", "a safetensors file", lambda width: b""),
    _bad("pickle", "a safetensors file", lambda width: b"\x80\x02}q\x00X\x05\x00\x00\x00model."),
    _bad("zip of torch", "a safetensors file", lambda width: b"PK\x03\x04" + bytes(99)),
    _bad("web page", "a safetensors file", lambda width: b"<!doctype html><title>404</title>"),
    _bad("cut", "as long as its header says", lambda width: file_of(_good(width))[:-8]),
    _bad("longer", "as long as its header says", lambda width: file_of(_good(width)) + bytes(8)),
    _bad("cut header", "a safetensors file", lambda width: file_of(_good(width))[:40]),
    _bad("integers", "tensors of one of", lambda width: {"a": torch.ones(4, dtype=torch.int32)}),
    # other kinds
    _bad("DoRA", "DoRA", _with(f"{SDXL_KOHYA}.dora_scale", torch.ones)),
    _bad("DoRA of PEFT", "DoRA", _with(f"{SDXL_LAYER}.lora_magnitude_vector", torch.ones)),
    _bad("LoKr", "LoKr", _only(f"{SDXL_KOHYA}.lokr_w1", f"{SDXL_KOHYA}.lokr_w2")),
    _bad("LoHa", "LoHa", _only(f"{SDXL_KOHYA}.hada_w1_a", f"{SDXL_KOHYA}.hada_w1_b")),
    _bad("OFT", "OFT", _only(f"{SDXL_KOHYA}.oft_blocks")),
    _bad("IA3", "IA3", _only(f"{SDXL_KOHYA}.on_input", f"{SDXL_KOHYA}.weight")),
    _bad("three parts", "three parts", _with(f"{SDXL_KOHYA}.lora_mid.weight", torch.ones)),
    _bad("whole weights", "whole weights", _only(f"{SDXL_KOHYA}.diff")),
    _bad("textual inversion", "textual inversion", _only("emb_params")),
    _bad("a checkpoint", "other tensors", _only("unet.conv_in.weight", "unet.conv_in.bias")),
    _bad("biases", "a control LoRA", _with(f"{SDXL_LAYER}.lora_B.bias", torch.ones)),
    _bad("others beside", "1 other tensors", _with("unet.conv_in.bias", torch.ones)),
    # halves
    _bad("downs alone", "both halves", _without("B")),
    _bad("ups alone", "other tensors", _without("A")),
    _bad("one half more", "1 halves alone", _with("unet.conv_out.lora_A.weight", torch.ones)),
    _bad("one up more", "1 halves alone", _with("unet.conv_out.lora_B.weight", torch.ones)),
    # values and shapes
    _bad("NaN", "NaN", _changed("A", _set(float("nan")))),
    _bad("infinite", "NaN or infinite", _changed("B", _set(float("inf")))),
    _bad("more inputs", "(rank, ", _changed("A", lambda each: torch.ones(4, each.shape[1] + 1))),
    _bad("fewer outputs", ", rank)", _changed("B", lambda each: each[1:])),
    _bad("ranks that differ", ", rank)", _changed("B", lambda each: each[:, 1:])),
    _bad("no rank", ", rank)", lambda width: pair(SDXL_LAYER, (width, width), 0)),
    _bad("rank 257", "at most 256", lambda width: pair(SDXL_LAYER, (width, width), 257)),
    # layers of others
    _bad("no such layer", "layers that SDXL has", lambda width: pair("unet.nothing", (4, 4))),
    _bad("a norm", "layers that SDXL has", lambda width: pair("unet.conv_norm_out", (4, 4))),
    _bad(
        "one more layer",
        "1 of 2 others, such as unet.nothing",
        lambda width: {**_good(width), **pair("unet.nothing", (4, 4))},
    ),
    _bad("FLUX on SDXL", "one for FLUX", lambda width: pair(FLUX_LAYER, (4, 4))),
    _bad("kohya FLUX on SDXL", "one for FLUX", lambda width: kohya_pair(FLUX_KOHYA, (12, 4))),
    _bad("SDXL on FLUX", "it looks like one for SD", lambda width: _good(width), model="flux-tiny"),
    _bad(
        "kohya SDXL on FLUX",
        "it looks like one for SD",
        lambda width: kohya_pair(SDXL_KOHYA, (4, 4)),
        model="flux-tiny",
    ),
    _bad(
        "SDXL on SD 1.5",
        "one for SDXL",
        lambda width: {
            **_good(width),
            **kohya_pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", (4, 4)),
        },
        model="sd15-tiny",
    ),
    _bad(
        "two notations",
        "layers that SDXL has",
        lambda width: {
            **kohya_pair(SDXL_KOHYA, (width, width)),
            **kohya_pair("lora_unet_input_blocks_1_0_emb_layers_1", (4, 4)),
        },
    ),
    _bad(
        "control LoRA",
        "a control LoRA",
        lambda width: pair("transformer.x_embedder", (width, 2 * 64)),
        model="flux-tiny",
    ),
    _bad(
        "T5 of kohya's FLUX",
        "layers that FLUX has",
        lambda width: {
            **kohya_pair(FLUX_KOHYA, (3 * width, width)),
            **kohya_pair("lora_te3_encoder_block_0_layer_0_SelfAttention_q", (4, 4)),
        },
        model="flux-tiny",
    ),
)
