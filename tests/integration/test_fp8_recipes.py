"""The FP8 recipes that are compared on a card make what they say, and draw."""

import pytest
import torch
from torchao.quantization import Float8Tensor

from pixpod.engine.precision.quantization import ADALN
from pixpod_bench.random_models import build_flux_transformer
from pixpod_bench.recipes import QUANTIZE
from pixpod_bench.scenarios import Recipe
from pixpod_tools.bake.architectures import ARCHITECTURES

CPU = torch.device("cpu")


@pytest.fixture
def made():
    """A small random transformer of one recipe; its FP8 weights by name."""

    def make(recipe):
        torch.manual_seed(0)
        config = ARCHITECTURES["flux-tiny"].denoiser
        transformer = build_flux_transformer(config, CPU, torch.bfloat16)
        QUANTIZE[recipe](transformer, CPU)
        weights = {
            name.removesuffix(".weight"): weight
            for name, weight in transformer.named_parameters()
            if isinstance(weight, Float8Tensor)
        }
        return transformer, weights

    return make


def test_rows_have_a_scale_each_and_tensors_one(made):
    _, by_rows = made(Recipe.PER_ROW)
    _, by_tensors = made(Recipe.PER_TENSOR)
    assert by_rows.keys() == by_tensors.keys()
    assert {weight.scale.numel() for weight in by_tensors.values()} == {1}
    assert all(weight.scale.numel() == weight.shape[0] for weight in by_rows.values())


def test_adaln_alone_stays_in_16_bits(made):
    _, every = made(Recipe.PER_ROW)
    _, without = made(Recipe.ADALN_16)
    assert every.keys() - without.keys() == {name for name in every if ADALN.fullmatch(name)}
    assert any(ADALN.fullmatch(name) for name in every)


def test_three_projections_become_one_in_float8_and_compute_the_same(made):
    apart, single = made(Recipe.PER_ROW)
    fused, joined = made(Recipe.FUSED_QKV)
    assert any(name.endswith("to_qkv") for name in joined)
    assert not any(name.endswith(("to_q", "to_k", "to_v", "add_q_proj")) for name in joined)
    sizes = [sum(weight.numel() for weight in each.values()) for each in (single, joined)]
    assert sizes[0] == sizes[1]
    config = apart.config
    inputs = {
        "hidden_states": torch.randn(2, 16, config.in_channels, dtype=torch.bfloat16),
        "encoder_hidden_states": torch.randn(2, 8, config.joint_attention_dim).bfloat16(),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim).bfloat16(),
        "timestep": torch.tensor([0.5, 0.5]).bfloat16(),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(8, 3),
        "guidance": torch.ones(2) if config.guidance_embeds else None,
    }
    with torch.inference_mode():
        one, other = (each(**inputs, return_dict=False)[0] for each in (apart, fused))
    assert torch.equal(one, other)
