"""Sizes of models, by the family's table and by their files."""

import json

import pytest
from support.factories import make_image_prompt

from pixpod.catalog import load_catalog
from pixpod.engine.memory.needs import NoFootprint, known_bytes, measured_bytes
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.families import GIB, Precision
from pixpod.job import Mode
from pixpod.methods import StageName, extras_of, method_of, stages_of
from pixpod.weights.layout import Weights

CATALOG = load_catalog()
FP8, BF16, FP16 = Precision.FLOAT8_DYNAMIC, Precision.BFLOAT16, Precision.FLOAT16
SQUARE = (1024, 1024)


def total_gib(name, plan):
    return sum(known_bytes(CATALOG[name], plan).values()) / GIB


@pytest.mark.parametrize(
    ("name", "plan", "gib"),
    [
        pytest.param(
            "flux-dev", QuantizationPlan(precision=FP8, t5=FP8), 16.06, id="flux in 8 bits"
        ),
        pytest.param("flux-dev", QuantizationPlan(precision=FP8), 20.36, id="flux, T5 in 16 bits"),
        pytest.param(
            "flux-dev", QuantizationPlan(precision=FP8, adaln=BF16), 23.36, id="flux, adaln too"
        ),
        pytest.param("flux-dev", QuantizationPlan(precision=BF16), 31.43, id="flux in 16 bits"),
        pytest.param(
            "flux-dev", QuantizationPlan(precision=Precision.INT8_DYNAMIC), 20.36, id="flux in int8"
        ),
        pytest.param("sd35-medium", QuantizationPlan(precision=BF16), 15.15, id="sd35 medium"),
        pytest.param("sd35-medium", QuantizationPlan(precision=FP8, t5=FP8), 8.78, id="in float8"),
        pytest.param("sd35-large", QuantizationPlan(precision=BF16), 25.72, id="sd35 large"),
        pytest.param("sd35-large", QuantizationPlan(precision=FP8), 18.27, id="large in float8"),
        pytest.param("sdxl", QuantizationPlan(precision=FP16), 6.46, id="sdxl"),
        pytest.param(
            "sdxl", QuantizationPlan(precision=Precision.FLOAT32), 12.92, id="sdxl in 32 bits"
        ),
        pytest.param("sd15", QuantizationPlan(precision=FP16), 1.99, id="sd15"),
        pytest.param("flux-tiny", QuantizationPlan(precision=FP8), 0.08, id="shipped"),
    ],
)
def test_sizes_of_models(name, plan, gib):
    assert total_gib(name, plan) == pytest.approx(gib, abs=0.005)


def test_precision_without_figures_names_those_that_have_some():
    with pytest.raises(NoFootprint, match=r"^float32, bfloat16, float16$"):
        known_bytes(CATALOG["sdxl"], QuantizationPlan(precision=FP8))


def working_gib(model, stage, size, batch_size):
    spec = CATALOG[model]
    request = spec.default_request(width=size[0], height=size[1])
    plans = {plan.name: plan for plan in stages_of(spec, method_of(spec, request))}
    return plans[stage].working_bytes(batch_size) / GIB


@pytest.mark.parametrize(
    ("model", "size", "batch_size", "gib"),
    [
        pytest.param("flux-dev", SQUARE, 1, 2.4, id="flux"),
        pytest.param("flux-dev", SQUARE, 4, 8.4, id="four of flux"),
        pytest.param("flux-dev", (2048, 1024), 1, 4.4, id="twice the pixels"),
        pytest.param("sdxl", SQUARE, 1, 2.5, id="sdxl"),
        pytest.param("sd15", (512, 512), 2, 1.5, id="two of sd15"),
    ],
)
def test_memory_for_decoding_follows_pixels(model, size, batch_size, gib):
    needed = working_gib(model, StageName.DECODE, size, batch_size)
    assert needed == pytest.approx(gib, abs=0.001)
    assert working_gib(model, StageName.DENOISE, size, batch_size) < needed


def test_texts_take_little_whatever_the_size():
    assert working_gib("flux-dev", StageName.TEXT_ENCODE, SQUARE, 8) == pytest.approx(0.3)


def plans_with(model, encoder, text_tokens=0, **changes):
    spec = CATALOG[model]
    prompt = make_image_prompt(adapter="adapter", encoder=encoder, text_tokens=text_tokens)
    request = spec.default_request(image_prompt=prompt, **changes)
    plans = {plan.name: plan for plan in stages_of(spec, method_of(spec, request))}
    return plans[StageName.IMAGE_ENCODE], plans[StageName.DENOISE], extras_of(spec, request)


def test_image_prompt_of_a_unet_is_read_and_then_attended_to():
    encode, denoise, extras = plans_with("sdxl", "vit-h")
    assert encode.components == ("vit-h", "adapter")
    assert denoise.components == ("unet", "adapter")
    assert extras == ("vit-h", "adapter")
    plain = working_gib("sdxl", StageName.DENOISE, SQUARE, 4)
    assert denoise.working_bytes(4) / GIB == pytest.approx(plain)
    encode, _, _ = plans_with("sdxl", "vit-h", mode=Mode.IMAGE_TO_IMAGE, strength=0.5)
    assert encode.components == ("vae", "vit-h", "adapter")


def test_image_prompt_of_flux_is_read_and_makes_the_text_longer():
    encode, denoise, extras = plans_with("flux-dev", None, 2 * 729)
    assert encode.components == ("adapter",)
    assert denoise.components == ("transformer",)
    assert extras == ("adapter",)
    plain = working_gib("flux-dev", StageName.DENOISE, SQUARE, 4) - 0.4
    assert denoise.working_bytes(4) / GIB - 0.4 == pytest.approx(plain * (1 + 2 * 729 / 4096))


@pytest.fixture
def stored(tmp_path):
    """A FLUX model whose files have made-up sizes; its transformer is in two shards."""
    sizes = {"text_encoder": 10, "text_encoder_2": 400, "vae": 8}
    for component, size in sizes.items():
        (tmp_path / component).mkdir()
        (tmp_path / component / "model.safetensors").write_bytes(b"\0" * size)
    transformer = tmp_path / "transformer"
    transformer.mkdir()
    names = ["a-1.safetensors", "a-2.safetensors"]
    for name in names:
        (transformer / name).write_bytes(b"\0" * 500)
    index = {"weight_map": dict(zip("xy", names, strict=True))}
    (transformer / "a.safetensors.index.json").write_text(json.dumps(index))

    def weights(precision):
        return Weights(folder=tmp_path, revision="1", source="baked", precision=precision)

    return weights


@pytest.mark.parametrize(
    ("stored_in", "runs_in", "denoiser", "vae"),
    [
        pytest.param(FP8, FP8, 1000, 8, id="as it is"),
        pytest.param(None, FP8, 500, 8, id="quantised at boot"),
        pytest.param(FP8, BF16, 2000, 8, id="dequantised"),
        pytest.param(BF16, Precision.FLOAT32, 2000, 16, id="widened"),
    ],
)
def test_files_tell_sizes(stored, stored_in, runs_in, denoiser, vae):
    plan = QuantizationPlan(precision=runs_in)
    found = measured_bytes(CATALOG["flux-dev"], plan, stored(stored_in))
    assert (found["transformer"], found["vae"]) == (denoiser, vae)


def test_t5_that_is_converted_has_the_size_of_the_table(stored):
    found = measured_bytes(
        CATALOG["flux-dev"], QuantizationPlan(precision=FP8, t5=FP8), stored(FP8)
    )
    assert found["text_encoder_2"] == round(4.57 * GIB)
    small = measured_bytes(
        CATALOG["flux-tiny"], QuantizationPlan(precision=FP8, t5=FP8), stored(FP8)
    )
    assert small["text_encoder_2"] == 400
