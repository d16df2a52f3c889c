"""Transformers of diffusers under the names that the authors of their families publish them with.

The opposite of diffusers' own conversions of single files.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from support.ldm_layout import Renames

Tensors = dict[str, torch.Tensor]

_X, _CONTEXT = r"joint_blocks.\1.x_block", r"joint_blocks.\1.context_block"
_BLOCK = r"^transformer_blocks\.(\d+)"
_DOUBLE, _SINGLE = r"double_blocks.\1", r"single_blocks.\1"
_IMAGE_NORM, _TEXT_NORM = rf"{_DOUBLE}.img_attn.norm", rf"{_DOUBLE}.txt_attn.norm"
_SINGLE_BLOCK = r"^single_transformer_blocks\.(\d+)\.attn"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """New names, of which `<q>`, `<k>` and `<v>` are parts of one tensor, and the tensors whose
    halves, shift and scale, are in the other order.
    """

    renames: Renames
    swapped: str


LAYOUTS: Mapping[str, Layout] = {
    "sd35": Layout(
        renames=(
            (rf"{_BLOCK}\.(attn2?)\.to_([qkv])\.", rf"{_X}.\2.<\3>."),
            (rf"{_BLOCK}\.attn\.add_([qkv])_proj\.", rf"{_CONTEXT}.attn.<\2>."),
            (rf"{_BLOCK}\.(attn2?)\.norm_([qk])\.", rf"{_X}.\2.ln_\3."),
            (rf"{_BLOCK}\.attn\.norm_added_([qk])\.", rf"{_CONTEXT}.attn.ln_\2."),
            (rf"{_BLOCK}\.(attn2?)\.to_out\.0\.", rf"{_X}.\2.proj."),
            (rf"{_BLOCK}\.attn\.to_add_out\.", rf"{_CONTEXT}.attn.proj."),
            (rf"{_BLOCK}\.norm1\.linear\.", rf"{_X}.adaLN_modulation.1."),
            (rf"{_BLOCK}\.norm1_context\.linear\.", rf"{_CONTEXT}.adaLN_modulation.1."),
            (rf"{_BLOCK}\.ff\.net\.0\.proj\.", rf"{_X}.mlp.fc1."),
            (rf"{_BLOCK}\.ff\.net\.2\.", rf"{_X}.mlp.fc2."),
            (rf"{_BLOCK}\.ff_context\.net\.0\.proj\.", rf"{_CONTEXT}.mlp.fc1."),
            (rf"{_BLOCK}\.ff_context\.net\.2\.", rf"{_CONTEXT}.mlp.fc2."),
            (r"^pos_embed\.pos_embed$", "pos_embed"),
            (r"^pos_embed\.proj\.", "x_embedder.proj."),
            (r"^time_text_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
            (r"^time_text_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
            (r"^time_text_embed\.text_embedder\.linear_1\.", "y_embedder.mlp.0."),
            (r"^time_text_embed\.text_embedder\.linear_2\.", "y_embedder.mlp.2."),
            (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
            (r"^proj_out\.", "final_layer.linear."),
        ),
        # of sd35-tiny, whose last block is the fifth
        swapped=r"norm_out\.linear\..+|transformer_blocks\.4\.norm1_context\.linear\..+",
    ),
    "flux2-klein": Layout(
        renames=(
            (rf"{_BLOCK}\.attn\.to_([qkv])\.", rf"{_DOUBLE}.img_attn.<\2>."),
            (rf"{_BLOCK}\.attn\.add_([qkv])_proj\.", rf"{_DOUBLE}.txt_attn.<\2>."),
            (rf"{_BLOCK}\.attn\.norm_q\.weight", rf"{_IMAGE_NORM}.query_norm.scale"),
            (rf"{_BLOCK}\.attn\.norm_k\.weight", rf"{_IMAGE_NORM}.key_norm.scale"),
            (rf"{_BLOCK}\.attn\.norm_added_q\.weight", rf"{_TEXT_NORM}.query_norm.scale"),
            (rf"{_BLOCK}\.attn\.norm_added_k\.weight", rf"{_TEXT_NORM}.key_norm.scale"),
            (rf"{_BLOCK}\.attn\.to_out\.0\.", rf"{_DOUBLE}.img_attn.proj."),
            (rf"{_BLOCK}\.attn\.to_add_out\.", rf"{_DOUBLE}.txt_attn.proj."),
            (rf"{_BLOCK}\.ff\.linear_in\.", rf"{_DOUBLE}.img_mlp.0."),
            (rf"{_BLOCK}\.ff\.linear_out\.", rf"{_DOUBLE}.img_mlp.2."),
            (rf"{_BLOCK}\.ff_context\.linear_in\.", rf"{_DOUBLE}.txt_mlp.0."),
            (rf"{_BLOCK}\.ff_context\.linear_out\.", rf"{_DOUBLE}.txt_mlp.2."),
            (rf"{_SINGLE_BLOCK}\.to_qkv_mlp_proj\.", rf"{_SINGLE}.linear1."),
            (rf"{_SINGLE_BLOCK}\.to_out\.", rf"{_SINGLE}.linear2."),
            (rf"{_SINGLE_BLOCK}\.norm_q\.weight", rf"{_SINGLE}.norm.query_norm.scale"),
            (rf"{_SINGLE_BLOCK}\.norm_k\.weight", rf"{_SINGLE}.norm.key_norm.scale"),
            (r"_stream_modulation(\w*)\.linear\.", r"_stream_modulation\1.lin."),
            (r"^x_embedder\.", "img_in."),
            (r"^context_embedder\.", "txt_in."),
            (r"^time_guidance_embed\.timestep_embedder\.linear_1\.", "time_in.in_layer."),
            (r"^time_guidance_embed\.timestep_embedder\.linear_2\.", "time_in.out_layer."),
            (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
            (r"^proj_out\.", "final_layer.linear."),
        ),
        swapped=r"norm_out\.linear\..+",
    ),
    "z-image": Layout(
        renames=(
            (r"^all_final_layer\.2-1\.", "final_layer."),
            (r"^all_x_embedder\.2-1\.", "x_embedder."),
            (r"\.attention\.to_([qkv])\.", r".attention.<\1>."),
            (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
            (r"\.attention\.to_out\.0\.", ".attention.out."),
        ),
        swapped="",
    ),
}


def original_tensors(family: str, transformer: Path) -> Tensors:
    """The tensors of a transformer's folder under their authors' names."""
    layout = LAYOUTS[family]
    parts: dict[str, Tensors] = defaultdict(dict)
    for name, tensor in load_file(transformer / "diffusion_pytorch_model.safetensors").items():
        original = name
        for today, before in layout.renames:
            original = re.sub(today, before, original)
        part = re.search("<([qkv])>", original)
        value = torch.cat(tensor.chunk(2)[::-1]) if re.fullmatch(layout.swapped, name) else tensor
        parts[re.sub("<[qkv]>", "qkv", original)][part[1] if part else "all"] = value
    return {
        name: torch.cat([found[part] for part in "qkv"]) if "q" in found else found["all"]
        for name, found in parts.items()
    }
