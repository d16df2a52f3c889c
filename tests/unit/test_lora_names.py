"""The names of LoRA files: what is refused before it is read, and what it looks like."""

import pytest

from pixpod.errors import WeightsRefused
from pixpod.inputs.lora_names import check_names, title_of
from pixpod.inputs.refusals import Refused

GOOD = {
    "diffusers": ("unet.a.lora_A.weight", "unet.a.lora_B.weight"),
    "PEFT": ("a.lora_A.default.weight", "a.lora_B.default.weight"),
    "kohya": ("lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight", "lora_unet_a.alpha"),
    "old diffusers": ("unet.a.lora.down.weight", "unet.a.lora.up.weight"),
    "processors": (
        "unet.a.processor.to_q_lora.down.weight",
        "unet.a.processor.to_q_lora.up.weight",
    ),
    "text encoder": (
        "text_encoder.a.lora_linear_layer.down.weight",
        "text_encoder.a.lora_linear_layer.up.weight",
    ),
    "xlabs": (
        "double_blocks.0.processor.qkv_lora1.down.weight",
        "double_blocks.0.processor.qkv_lora1.up.weight",
    ),
}


@pytest.mark.parametrize("id", GOOD)
def test_notations_are_accepted(id):
    check_names(dict.fromkeys(GOOD[id], (4, 4)))


@pytest.mark.parametrize("id", GOOD)
@pytest.mark.parametrize("left_out", [0, 1])
def test_half_a_pair_is_refused(id, left_out):
    names = [name for at, name in enumerate(GOOD[id]) if at != left_out]
    with pytest.raises(Refused) as refused:
        check_names(dict.fromkeys(names, (4, 4)))
    assert refused.value.error is WeightsRefused


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "FLUX"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "FLUX"),
        ("double_blocks.0.processor.qkv_lora1.down.weight", "FLUX"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "SDXL"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_up.weight", "SDXL"),
        ("unet.down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_k.lora_A.weight", "SDXL"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "SD 1.5"),
        ("unet.up_blocks.1.attentions.0.proj_in.lora_A.weight", "SD 1.5"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", None),
    ],
)
def test_family_is_guessed_by_names(name, title):
    assert title_of([name]) == title
