"""A FLUX transformer deep and wide enough for FP8 to behave as in the full one."""

from collections.abc import Mapping

from pixpod_tools.bake.architectures import get_architecture

MID_SIZE_FLUX_TRANSFORMER: Mapping[str, object] = {
    **get_architecture("flux-dev").components["transformer"],
    "num_layers": 4,
    "num_single_layers": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 512,
    "pooled_projection_dim": 256,
}
"""71 million parameters."""
