"""Architectures for random weights: published full-size configurations as data, and tiny ones.

Names are those of the catalog, whose entries have the defaults and limits of requests.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pixpod.errors import InvalidSettings
from pixpod.families import (
    FLUX,
    FLUX2_KLEIN,
    FLUX_FILL,
    FLUX_KONTEXT,
    SD15,
    SD35,
    SDXL,
    Z_IMAGE,
    FamilySpec,
)

Config = Mapping[str, object]

_TINY_CHECKPOINTS = Path(__file__).parents[3] / "model_cache" / "tiny"
_NOTES = ("architectures", "dtype", "model_type", "transformers_version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Configurations of a pipeline's components by name, as their classes take them."""

    name: str
    family: FamilySpec
    components: Mapping[str, Config]
    scheduler: Config


_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 1024,
}
_FLUX_VAE = {
    **_VAE,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_SD35_VAE = {**_FLUX_VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609}
_SDXL_VAE = {
    **_VAE,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
    "force_upcast": False,  # as the fp16-safe VAE that is served with SDXL
}
_SD15_VAE = {**_VAE, "latent_channels": 4, "scaling_factor": 0.18215, "sample_size": 512}

_CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
_CLIP_BIG_G = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_T5_XXL = {
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "use_cache": False,
    "dropout_rate": 0.0,
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
}
_QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
}

_FLUX_TRANSFORMER = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
_SD35_MEDIUM_TRANSFORMER = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
_SD35_LARGE_TRANSFORMER = {
    **_SD35_MEDIUM_TRANSFORMER,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "dual_attention_layers": (),
}
_FLUX2_KLEIN_TRANSFORMER = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 3 * 2560,
    "guidance_embeds": False,
}
_SDXL_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD15_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 64,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}

_FLOW_MATCH = {"shift": 3.0, "use_dynamic_shifting": True}
_EULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}

_FLUX_DEV = Architecture(
    name="flux-dev",
    family=FLUX,
    components={
        "text_encoder": _CLIP_L,
        "text_encoder_2": _T5_XXL,
        "transformer": _FLUX_TRANSFORMER,
        "vae": _FLUX_VAE,
    },
    scheduler=_FLOW_MATCH,
)
_SDXL = Architecture(
    name="sdxl",
    family=SDXL,
    components={
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_BIG_G,
        "unet": _SDXL_UNET,
        "vae": _SDXL_VAE,
    },
    scheduler=_EULER,
)
_SD35_MEDIUM = Architecture(
    name="sd35-medium",
    family=SD35,
    components={
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_BIG_G,
        "text_encoder_3": _T5_XXL,
        "transformer": _SD35_MEDIUM_TRANSFORMER,
        "vae": _SD35_VAE,
    },
    scheduler={"shift": 3.0},
)

FULL_SIZE: Mapping[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        _FLUX_DEV,
        replace(_FLUX_DEV, name="flux-dev-16bit"),
        replace(_FLUX_DEV, name="flux-krea-dev"),
        replace(_FLUX_DEV, name="flux-kontext", family=FLUX_KONTEXT),
        replace(
            _FLUX_DEV,
            name="flux-fill",
            family=FLUX_FILL,
            components={
                **_FLUX_DEV.components,
                # packed latents, those of the masked image, and 64 pixels of the mask for each
                "transformer": {**_FLUX_TRANSFORMER, "in_channels": 384, "out_channels": 64},
            },
        ),
        Architecture(
            name="flux-schnell",
            family=FLUX,
            components={
                "text_encoder": _CLIP_L,
                "text_encoder_2": _T5_XXL,
                "transformer": _FLUX_TRANSFORMER | {"guidance_embeds": False},
                "vae": _FLUX_VAE,
            },
            scheduler={"shift": 1.0, "use_dynamic_shifting": False},
        ),
        Architecture(
            name="flux2-klein",
            family=FLUX2_KLEIN,
            components={
                "text_encoder": _QWEN3_4B,
                "transformer": _FLUX2_KLEIN_TRANSFORMER,
                "vae": {},  # the class is made for it
            },
            scheduler=_FLOW_MATCH,
        ),
        Architecture(
            name="z-image-turbo",
            family=Z_IMAGE,
            components={
                "text_encoder": _QWEN3_4B,
                "transformer": {"axes_lens": (1536, 512, 512)},  # the class is made for it
                "vae": _FLUX_VAE,
            },
            scheduler={"shift": 3.0, "use_dynamic_shifting": False},
        ),
        Architecture(
            name="sd15",
            family=SD15,
            components={
                "text_encoder": _CLIP_L,
                "unet": _SD15_UNET,
                "vae": _SD15_VAE,
            },
            scheduler=_EULER,
        ),
        _SD35_MEDIUM,
        replace(
            _SD35_MEDIUM,
            name="sd35-large",
            components={**_SD35_MEDIUM.components, "transformer": _SD35_LARGE_TRANSFORMER},
        ),
        _SDXL,
        replace(_SDXL, name="sdxl-lightning"),
        replace(_SDXL, name="sdxl-turbo"),
    )
}
TINY: Mapping[str, FamilySpec] = {
    "flux-tiny": FLUX,
    "sd35-tiny": SD35,
    "sdxl-tiny": SDXL,
    "sd15-tiny": SD15,
}


def get_architecture(name: str) -> Architecture:
    """Return a published architecture or that of a tiny checkpoint which ships.

    Raises InvalidSettings for any other name.
    """
    if name in FULL_SIZE:
        return FULL_SIZE[name]
    if name not in TINY:
        known = ", ".join((*FULL_SIZE, *TINY))
        raise InvalidSettings(f"--random {name}: expected {known}")
    folder = _TINY_CHECKPOINTS / name
    return Architecture(
        name=name,
        family=TINY[name],
        components={
            each.name: _read(folder / each.name / "config.json") for each in TINY[name].components
        },
        scheduler=_read(folder / "scheduler" / "scheduler_config.json"),
    )


def _read(file: Path) -> Config:
    """Return a config without what a library notes in it about the file."""
    config: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    return {
        key: value for key, value in config.items() if not key.startswith("_") and key not in _NOTES
    }
