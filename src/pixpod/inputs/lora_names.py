"""Judges LoRA files by the names of their tensors, before any of them is read.

Knows no model: whether a layer is there, and has this shape, is seen when the file is read for one.
"""

import re
from collections.abc import Iterable, Mapping

from pixpod.errors import WeightsRefused
from pixpod.inputs.refusals import Refused

_KINDS: Mapping[str, str] = {
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"lokr_": "LoKr",
    r"hada_": "LoHa",
    r"oft_|boft": "OFT",
    r"ia3|on_input": "IA3",
    r"glora|\.(a1|a2|b1|b2)\.weight$": "GLoRA",
    r"lora_mid": "a LoRA in three parts (Tucker)",
    r"\.diff(_b)?$|set_weight": "whole weights of layers",
    r"lora_B\.bias|query_norm|key_norm|\.norm_(added_)?[qk]\.": "a control LoRA",
    r"reshape_weight|w_norm|b_norm": "norms and reshaped weights",
    r"string_to_param|emb_params|^clip_[lg]$": "a textual inversion",
}
"""Kinds of adapters that this worker does not have, by parts of their tensors' names."""

_DOWN = re.compile(r"(.*)(lora_A(?:\.default)?|lora_down|\bdown)\.weight")
_UP = {"lora_A": "lora_B", "lora_A.default": "lora_B.default", "lora_down": "lora_up", "down": "up"}
_UPS = re.compile(r".*(lora_B(?:\.default)?|lora_up|\bup)\.weight")


def check_names(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse what is no LoRA, or another kind of adapter. Raises Refused with WeightsRefused."""
    for pattern, kind in _KINDS.items():
        if any(re.search(pattern, name) for name in shapes):
            raise _refused("a LoRA of pairs", kind)
    downs = [(name, found) for name in shapes if (found := _DOWN.fullmatch(name))]
    if not downs:
        raise _refused("a LoRA of pairs", "a file of other tensors")
    ups = {f"{found[1]}{_UP[found[2]]}.weight": name for name, found in downs}
    lonely = [name for up, name in ups.items() if up not in shapes]
    lonely += [name for name in shapes if _UPS.fullmatch(name) and name not in ups]
    if lonely:
        raise _refused("both halves of each pair", f"{len(lonely)} halves alone")
    others = len(shapes) - 2 * len(downs) - sum(name.endswith(".alpha") for name in shapes)
    if others:
        raise _refused("a LoRA of pairs", f"{others} other tensors beside them")


def title_of(names: Iterable[str]) -> str | None:
    """Return the title of the family whose layers are called so; None for unknown names."""
    listed = tuple(names)
    for title, pattern in _TITLES.items():
        if any(pattern.search(name) for name in listed):
            return title
    return None


_TITLES: Mapping[str, re.Pattern[str]] = {
    "SD 3.5": re.compile(r"joint_blocks|\.attn2\.add_"),
    "FLUX": re.compile(r"double_blocks|single_blocks|^transformer\.(single_)?transformer_blocks"),
    "SDXL": re.compile(
        r"lora_te2_|text_encoder_2\.|(input|output)_blocks_\d+_1_transformer_blocks_[1-9]"
        r"|(down|up)_blocks[._]\d+[._]attentions[._]\d+[._]transformer_blocks[._][1-9]"
    ),
    "SD 1.5": re.compile(r"lora_te_|lora_unet_|unet\.(down|mid|up)_block"),
}


def _refused(accepted: str, value: str) -> Refused:
    return Refused(WeightsRefused, accepted, value=value)
