"""The family of a file of weights by the names and shapes in its header."""

import pytest

from pixpod.families import FAMILIES

LDM = {
    "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
    "first_stage_model.encoder.conv_in.weight": [128, 3, 3, 3],
}
CLIP = {"cond_stage_model.transformer.text_model.embeddings.position_ids": [1, 77]}
SDXL_LABELS = {"model.diffusion_model.label_emb.0.0.weight": [1280, 2816]}
SDXL_TEXTS = {
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": [768],
    "conditioner.embedders.1.model.ln_final.weight": [1280],
}
REFINER_TEXT = {"conditioner.embedders.0.model.ln_final.weight": [1280]}
FLUX_BLOCKS = {"single_blocks.0.linear1.weight": [21504, 3072]}
FLUX2 = {
    "single_blocks.0.linear1.weight": [27648, 3072],
    "single_stream_modulation.lin.weight": [9216, 3072],
    "img_in.weight": [3072, 128],
}
SD3 = {
    "x_embedder.proj.weight": [1536, 16, 2, 2],
    "joint_blocks.0.x_block.attn.qkv.weight": [4608, 1536],
}
HEADERS = {
    "SD 1.5": ({**LDM, **CLIP}, {"sd15"}),
    "SD 1.5 for inpainting": (
        {**LDM, **CLIP, "model.diffusion_model.input_blocks.0.0.weight": [320, 9, 3, 3]},
        set(),
    ),
    "SD 2.1": ({**LDM, "cond_stage_model.model.ln_final.weight": [1024]}, set()),
    "SDXL": ({**LDM, **SDXL_LABELS, **SDXL_TEXTS}, {"sdxl"}),
    "SDXL refiner": ({**LDM, **SDXL_LABELS, **REFINER_TEXT}, set()),
    "FLUX.1": ({**FLUX_BLOCKS, "img_in.weight": [3072, 64]}, {"flux", "flux-kontext"}),
    "FLUX.1 with a prefix": (
        {
            "model.diffusion_model.single_blocks.0.linear1.weight": [21504, 3072],
            "model.diffusion_model.img_in.weight": [3072, 64],
        },
        {"flux", "flux-kontext"},
    ),
    "FLUX.1 of diffusers": (
        {
            "single_transformer_blocks.0.proj_mlp.weight": [12288, 3072],
            "x_embedder.weight": [3072, 64],
        },
        {"flux", "flux-kontext"},
    ),
    "FLUX.1 Fill": ({**FLUX_BLOCKS, "img_in.weight": [3072, 384]}, {"flux-fill"}),
    "FLUX.2 dev": ({**FLUX2, "guidance_in.in_layer.weight": [6144, 256]}, set()),
    "FLUX.2 klein": (FLUX2, {"flux2-klein"}),
    "FLUX.2 klein with a prefix": (
        {f"model.diffusion_model.{name}": shape for name, shape in FLUX2.items()},
        {"flux2-klein"},
    ),
    "FLUX.2 dev of diffusers": (
        {
            "single_stream_modulation.linear.weight": [18432, 6144],
            "time_guidance_embed.guidance_embedder.linear_1.weight": [6144, 256],
        },
        set(),
    ),
    "FLUX.2 klein of diffusers": (
        {"single_stream_modulation.linear.weight": [9216, 3072]},
        {"flux2-klein"},
    ),
    "SD 3": (SD3, set()),
    "SD 3.5": ({**SD3, "joint_blocks.0.x_block.attn.ln_q.weight": [64]}, {"sd35"}),
    "SD 3.5 with a prefix": (
        {
            "model.diffusion_model.x_embedder.proj.weight": [1536, 16, 2, 2],
            "model.diffusion_model.joint_blocks.0.x_block.attn.ln_q.weight": [64],
        },
        {"sd35"},
    ),
    "SD 3.5 of diffusers": (
        {
            "pos_embed.proj.weight": [1536, 16, 2, 2],
            "transformer_blocks.0.attn.norm_q.weight": [64],
        },
        {"sd35"},
    ),
    "Z-Image": ({"layers.0.adaLN_modulation.0.weight": [15360, 256]}, {"z-image"}),
    "Z-Image with a prefix": (
        {"model.diffusion_model.layers.0.adaLN_modulation.0.weight": [15360, 256]},
        {"z-image"},
    ),
    "Z-Image with SigLIP": (
        {
            "layers.0.adaLN_modulation.0.weight": [15360, 256],
            "siglip_embedder.1.weight": [3840, 1152],
        },
        set(),
    ),
    "Lumina 2": ({"layers.0.adaLN_modulation.1.weight": [9216, 1024]}, set()),
}


@pytest.mark.parametrize("title", HEADERS)
def test_published_layouts_are_recognised(title):
    shapes, expected = HEADERS[title]
    headers = {name: family.header for name, family in FAMILIES.items()}
    assert {name for name, each in headers.items() if each and each.fits(shapes)} == expected
