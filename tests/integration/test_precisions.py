"""Real torchao on the tiny FLUX: each precision obeys its prompt, and gives way again."""

from dataclasses import replace

import pytest
import torch
from support import loading
from support.tiny_models import share, trained_scenes
from torch import nn
from torchao.quantization import Float8Tensor, PerRow, quant_api
from torchao.quantization.quantize_.workflows import Int8Tensor

from pixpod.engine.model import LoadedModel
from pixpod.engine.precision.attention import set_attention
from pixpod.engine.precision.float8 import computes_float8, holds_float8
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.engine.precision.quantization import convert, is_8_bit
from pixpod.families import FLUX, Precision
from pixpod_tools.tiny.checker import check

CPU = torch.device("cpu")
FLOAT8, WEIGHT_ONLY = Precision.FLOAT8_DYNAMIC, Precision.FLOAT8_WEIGHT_ONLY
SCENES = trained_scenes(6)
BF16, INT8 = Precision.BFLOAT16, Precision.INT8_DYNAMIC


def load(plan: Precision | QuantizationPlan, **present: nn.Module) -> LoadedModel:
    return loading.load("flux-tiny", loading.shipped("flux-tiny"), plan, CPU, present)


def generate(model, prompts, steps=8):
    """8-bit images, one for each prompt, as one batch."""
    with torch.inference_mode():
        images = model.full_pipeline()(
            prompt=list(prompts),
            width=64,
            height=64,
            num_inference_steps=steps,
            guidance_scale=3.5,
            max_sequence_length=48,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(len(prompts))],
            output_type="np",
        ).images
    return (images * 255).round().astype("uint8")


def weights(module):
    return {
        name: each.weight
        for name, each in module.named_modules()
        if isinstance(each, torch.nn.Linear)
    }


def stored_bytes(module):
    """What a module keeps in memory, counting each storage once."""
    storages = {}
    for parameter in module.parameters():
        names = parameter.__tensor_flatten__()[0] if hasattr(parameter, "qdata") else []
        for tensor in [getattr(parameter, name) for name in names] or [parameter]:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.fixture(scope="module")
def float8():
    return load(FLOAT8)


@pytest.mark.parametrize(
    ("start", "target"),
    [
        pytest.param(BF16, WEIGHT_ONLY, id="weight-only of 16-bit"),
        pytest.param(BF16, INT8, id="INT8 of 16-bit"),
        pytest.param(FLOAT8, WEIGHT_ONLY, id="weight-only of float8"),
        pytest.param(FLOAT8, BF16, id="dequantised"),
    ],
)
def test_prompts_are_obeyed_in_every_precision(start, target):
    model = load(start)
    convert(model.components["transformer"], target, CPU, FLUX.quantization)
    images = generate(model, [scene.caption for scene in SCENES])
    verdicts = [check(image, scene) for image, scene in zip(images, SCENES, strict=True)]
    assert share([verdict.background for verdict in verdicts]) > 0.8
    assert share([verdict.colour for verdict in verdicts]) > 0.8
    assert share([verdict.shape for verdict in verdicts]) > 0.6


def test_dequantised_weights_are_the_float8_values_in_16_bits():
    transformer = load(FLOAT8).components["transformer"]
    before = {
        name: weight.dequantize() if isinstance(weight, Float8Tensor) else weight.clone()
        for name, weight in weights(transformer).items()
    }
    convert(transformer, BF16, CPU, FLUX.quantization)
    assert not is_8_bit(transformer)
    after = weights(transformer)
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_weight_only_keeps_the_values_and_leaves_activations_alone(float8):
    transformer = load(FLOAT8).components["transformer"]
    convert(transformer, WEIGHT_ONLY, CPU, FLUX.quantization)
    found = {n: w for n, w in weights(transformer).items() if isinstance(w, Float8Tensor)}
    assert len(found) > 20
    for name, weight in weights(float8.components["transformer"]).items():
        if name in found:
            assert found[name].act_quant_kwargs is None
            assert torch.equal(found[name].qdata.view(torch.uint8), weight.qdata.view(torch.uint8))


def test_int8_leaves_out_layers_that_see_no_tokens():
    transformer = load(INT8).components["transformer"]
    kinds = {name: isinstance(weight, Int8Tensor) for name, weight in weights(transformer).items()}
    modulation = [name for name in kinds if name.endswith(".linear") and "blocks" in name]
    assert modulation
    assert not any(kinds[name] for name in modulation)
    assert sum(kinds.values()) > 15


def test_text_encoder_is_quantized_where_a_gpu_is_small(float8):
    small = load(QuantizationPlan(precision=FLOAT8, t5=FLOAT8))
    assert holds_float8(small.components["text_encoder_2"])
    assert not holds_float8(float8.components["text_encoder_2"])
    assert not holds_float8(small.components["text_encoder"])
    shared = small.components["text_encoder_2"].shared.weight
    assert (
        shared.data_ptr()
        == small.components["text_encoder_2"].encoder.embed_tokens.weight.data_ptr()
    )
    (image,) = generate(small, [SCENES[0].caption])
    assert check(image, SCENES[0]).background


def test_files_are_let_go_once_their_weights_are_converted():
    """A bias that is still a view of its file would keep all of it on the device."""
    transformer = load(INT8).components["transformer"]
    needed = sum(
        parameter.qdata.nbytes + parameter.scale.nbytes
        if isinstance(parameter, Int8Tensor)
        else parameter.nbytes
        for parameter in transformer.parameters()
    )
    assert stored_bytes(transformer) < needed * 1.05


def test_model_is_built_around_components_that_are_there(float8):
    names = ("text_encoder", "text_encoder_2", "vae")
    best = load(BF16, **{name: float8.components[name] for name in names})
    assert best.identity == replace(float8.identity, precision="bfloat16")
    for name in names:
        assert best.components[name] is float8.components[name]
    assert not is_8_bit(best.components["transformer"])
    assert holds_float8(float8.components["transformer"])
    prompts = ["a red circle on a blue background"]
    alone = generate(load(BF16), prompts, steps=2)
    assert (generate(best, prompts, steps=2) == alone).all()


def test_cpu_computes_float8_and_the_check_of_torchao_is_back():
    assert computes_float8(CPU)
    with pytest.raises(AssertionError, match="CUDA"):
        quant_api._check_hardware_support((PerRow(), PerRow()))


def test_attention_that_does_not_run_falls_back_and_says_so(float8):
    transformer = float8.components["transformer"]
    processor = transformer.transformer_blocks[0].attn.processor
    assert set_attention(transformer, "_native_math", CPU) == ()
    assert processor._attention_backend == "_native_math"
    (warning,) = set_attention(transformer, "_native_cudnn", CPU)
    assert "torch's own is used" in warning
    assert processor._attention_backend == "native"
