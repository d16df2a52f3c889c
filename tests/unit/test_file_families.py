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
    "FLUX.2": ({**FLUX_BLOCKS, "img_in.weight": [6144, 128]}, set()),
    "SD 3.5": ({"joint_blocks.0.x_block.attn.qkv.weight": [4608, 1536]}, set()),
}
FOUND_HERE = {"sd15", "sdxl", "flux", "flux-kontext", "flux-fill"}


@pytest.mark.parametrize("title", HEADERS)
def test_published_layouts_are_recognised(title):
    shapes, expected = HEADERS[title]
    found = {name for name in FOUND_HERE if (each := FAMILIES[name].header) and each.fits(shapes)}
    assert found == expected
