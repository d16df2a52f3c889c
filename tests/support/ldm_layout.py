"""A pipeline of diffusers as one file in the layout of the authors of Stable Diffusion 1.

For pipelines whose blocks all have one layer, as the tiny ones have.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

Renames = tuple[tuple[str, str], ...]

_RESNET: Renames = (
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
_UNET: Renames = (
    (r"^conv_in", "input_blocks.0.0"),
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
)
_VAE: Renames = (
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets", r"up.\1.block"),
    (r"up_blocks\.(\d)\.upsamplers\.0", r"up.\1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
)
_UP_BLOCKS_OF_VAE = 4


def single_file_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a Stable Diffusion pipeline under their original names."""
    return dict(_tensors(folder))


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    weights = "diffusion_pytorch_model.safetensors"
    for name, tensor in load_file(folder / "unet" / weights).items():
        yield f"model.diffusion_model.{_of_unet(name)}", tensor
    yield from vae_tensors(folder / "vae").items()
    for name, tensor in load_file(folder / "text_encoder/model.safetensors").items():
        yield f"cond_stage_model.transformer.text_model.{name}", tensor


def vae_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a VAE's folder under their original names."""
    found = {}
    for name, tensor in load_file(folder / "diffusion_pytorch_model.safetensors").items():
        original = _of_vae(name)
        is_convolution = "attn_1" in original and tensor.ndim == 2
        value = tensor[..., None, None] if is_convolution else tensor
        found[f"first_stage_model.{original}"] = value
    return found


def _of_unet(name: str) -> str:
    """Blocks are counted through: two places for each down block, two for each up block."""
    found = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    if not found:
        renamed = _renamed(name, _UNET)
        is_resnet = renamed.startswith(("middle_block.0", "middle_block.2"))
        return _renamed(renamed, _RESNET) if is_resnet else renamed
    kind, block, part, layer, rest = found.groups()
    side = "input_blocks" if kind == "down" else "output_blocks"
    place = 2 * int(block) + int(layer) + (kind == "down")
    if part == "downsamplers":
        return f"{side}.{place + 1}.0.op.{rest.removeprefix('conv.')}"
    if part == "upsamplers":
        return f"{side}.{place + 1}.2.{rest}"
    if part == "attentions":
        return f"{side}.{place}.1.{rest}"
    return _renamed(f"{side}.{place}.0.{rest}", _RESNET)


def _of_vae(name: str) -> str:
    """The blocks of the decoder are counted from its end."""
    original = _renamed(name, _VAE)
    return re.sub(
        r"(?<=\bup\.)\d", lambda found: str(_UP_BLOCKS_OF_VAE - 1 - int(found[0])), original
    )


def _renamed(name: str, renames: Renames) -> str:
    for today, before in renames:
        name = re.sub(today, before, name)
    return name
