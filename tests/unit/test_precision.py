"""Precision follows from the GPU, the checkpoint and the settings. No torch."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixpod.catalog import load_catalog
from pixpod.engine.precision.precision import (
    WORKING_BYTES,
    Hardware,
    QuantizationPlan,
    choose_precision,
    offered_qualities,
)
from pixpod.errors import DeviceUnavailable, InvalidInput, ModelUnavailable, WorkerError
from pixpod.families import GIB, STORED_PRECISIONS, Precision
from pixpod.gpus import find_gpu_class, load_gpu_classes
from pixpod.job import Quality
from pixpod.weights.layout import CheckpointInfo

CATALOG = load_catalog()
FLUX, SDXL, TINY = CATALOG["flux-dev"], CATALOG["sdxl"], CATALOG["flux-tiny"]
FLOAT8, WEIGHT_ONLY = Precision.FLOAT8_DYNAMIC, Precision.FLOAT8_WEIGHT_ONLY
BF16, INT8 = Precision.BFLOAT16, Precision.INT8_DYNAMIC
BAKED_16 = CheckpointInfo(denoiser=BF16, denoiser_bytes=23_800_000_000)
BAKED_8 = CheckpointInfo(denoiser=FLOAT8, denoiser_bytes=11_917_000_000)
BAKED_24 = replace(BAKED_8, is_t5_float8=True)
CPU = Hardware()


def hardware(capability, memory_gib=80.0, *, has_float8=None):
    card = find_gpu_class(capability)
    works = card.has_float8("2.13.0") if has_float8 is None else has_float8
    return Hardware(gpu=card, memory_bytes=int(memory_gib * GIB), has_float8=works)


def of(where):
    """A FLUX model that runs there."""
    return TINY if where.gpu is None else FLUX


A100, A6000, RTX_3090 = hardware((8, 0)), hardware((8, 6), 47.4), hardware((8, 6), 23.5)
RTX_4090, L40S, H100, B200 = (
    hardware((8, 9), 23.5),
    hardware((8, 9), 44.4),
    hardware((9, 0), 79.1),
    hardware((10, 0), 178.0),
)
OLD_TORCH = hardware((8, 9), 44.4, has_float8=False)


@pytest.mark.parametrize(
    ("where", "checkpoint", "compiled", "eager"),
    [
        pytest.param(H100, BAKED_16, FLOAT8, BF16, id="H100, 16-bit"),
        pytest.param(B200, BAKED_16, FLOAT8, BF16, id="B200, 16-bit"),
        pytest.param(H100, BAKED_8, FLOAT8, BF16, id="H100, float8"),
        pytest.param(L40S, BAKED_16, FLOAT8, FLOAT8, id="L40S, 16-bit"),
        pytest.param(L40S, BAKED_8, FLOAT8, FLOAT8, id="L40S, float8"),
        pytest.param(RTX_4090, BAKED_16, FLOAT8, FLOAT8, id="4090, 16-bit"),
        pytest.param(OLD_TORCH, BAKED_16, BF16, BF16, id="Ada with an old torch, 16-bit"),
        pytest.param(OLD_TORCH, BAKED_8, BF16, BF16, id="Ada with an old torch, float8"),
        pytest.param(A100, BAKED_16, BF16, BF16, id="A100, 16-bit"),
        pytest.param(A100, BAKED_8, BF16, BF16, id="A100, float8"),
        pytest.param(A6000, BAKED_16, INT8, BF16, id="A6000, 16-bit"),
        pytest.param(A6000, BAKED_8, BF16, BF16, id="A6000, float8"),
        pytest.param(RTX_3090, BAKED_16, INT8, WEIGHT_ONLY, id="3090, 16-bit"),
        pytest.param(RTX_3090, BAKED_8, WEIGHT_ONLY, WEIGHT_ONLY, id="3090, float8"),
    ],
)
def test_default_of_a_gpu_follows_the_table_as_far_as_it_fits(where, checkpoint, compiled, eager):
    assert choose_precision(FLUX, checkpoint, where, is_compiling=True).precision is compiled
    choice = choose_precision(FLUX, checkpoint, where, is_compiling=False)
    assert choice.precision is eager
    assert choice.is_dequantized == (checkpoint is BAKED_8 and eager is BF16)


def test_dequantised_weights_are_named_as_what_they_are():
    choice = choose_precision(FLUX, BAKED_8, A100)
    assert choice.label == "bfloat16 (from float8)"
    assert choose_precision(FLUX, BAKED_16, A100).label == "bfloat16"


def test_weight_only_says_that_it_is_slow():
    (warning,) = choose_precision(FLUX, BAKED_8, RTX_3090).warnings
    assert "saves memory only" in warning


def test_eager_float8_says_that_it_is_slow_where_it_is():
    (warning,) = choose_precision(FLUX, BAKED_8, H100, requested=FLOAT8).warnings
    assert warning == "float8_dynamic runs eagerly, which is slower than bfloat16"
    assert choose_precision(FLUX, BAKED_8, L40S, requested=FLOAT8).warnings == ()
    assert choose_precision(FLUX, BAKED_8, H100, requested=FLOAT8, is_compiling=True).warnings == ()
    assert choose_precision(TINY, BAKED_8, CPU).warnings == ()


def test_warning_for_a_gpu_is_in_the_plan():
    (warning,) = choose_precision(SDXL, CheckpointInfo(), hardware((7, 5), 15)).warnings
    assert "no bfloat16 arithmetic" in warning


@pytest.mark.parametrize(
    ("where", "checkpoint", "t5"),
    [
        pytest.param(H100, BAKED_8, None, id="H100 as checkpoint"),
        pytest.param(H100, BAKED_24, None, id="H100, T5 baked in float8"),
        pytest.param(RTX_4090, BAKED_16, FLOAT8, id="4090"),
        pytest.param(RTX_4090, BAKED_24, None, id="4090, T5 baked in float8"),
        pytest.param(RTX_3090, BAKED_16, WEIGHT_ONLY, id="3090"),
        pytest.param(RTX_3090, BAKED_24, WEIGHT_ONLY, id="3090, T5 baked in float8"),
        pytest.param(A100, BAKED_24, BF16, id="A100, T5 baked in float8"),
        pytest.param(A100, BAKED_16, None, id="A100 as checkpoint"),
        pytest.param(CPU, BAKED_24, None, id="CPU as checkpoint"),
    ],
)
def test_large_text_encoder_is_float8_on_small_gpus(where, checkpoint, t5):
    assert choose_precision(of(where), checkpoint, where).t5 is t5


def test_family_without_t5_has_no_format_of_it():
    stored = CheckpointInfo(denoiser=BF16, denoiser_bytes=12_300_000_000)
    plan = choose_precision(CATALOG["z-image-turbo"], stored, RTX_4090, quality=Quality.MAX)
    assert (plan.precision, plan.t5, plan.warnings) == (BF16, None, ())


@pytest.mark.parametrize(
    ("where", "checkpoint", "is_streamed"),
    [
        pytest.param(RTX_4090, BAKED_16, True, id="16-bit weights on 24 GB"),
        pytest.param(L40S, BAKED_16, False, id="16-bit weights on 48 GB"),
        pytest.param(RTX_4090, BAKED_8, False, id="float8 as it is"),
        pytest.param(RTX_3090, BAKED_8, False, id="float8, activations left alone"),
        pytest.param(hardware((8, 0), 39.4), BAKED_8, False, id="dequantised on 40 GB"),
        pytest.param(hardware((8, 0), 32.0), BAKED_8, True, id="dequantised on 32 GB"),
        pytest.param(CPU, BAKED_16, False, id="CPU"),
    ],
)
def test_what_does_not_fit_twice_is_converted_on_its_way(where, checkpoint, is_streamed):
    assert choose_precision(of(where), checkpoint, where).is_streamed is is_streamed


@pytest.mark.parametrize("checkpoint", STORED_PRECISIONS, ids=str)
def test_cpu_runs_what_is_stored_or_the_models_own(checkpoint):
    assert choose_precision(TINY, CheckpointInfo(denoiser=checkpoint), CPU).precision is FLOAT8
    assert (
        choose_precision(CATALOG["sd15-tiny"], CheckpointInfo(denoiser=BF16), CPU).precision
        == "float32"
    )


def test_max_is_16_bit_and_shares_the_default_where_that_is_it():
    for where, spec in ((CPU, TINY), (H100, FLUX), (RTX_3090, replace(FLUX, name="small"))):
        checkpoint = replace(BAKED_16, denoiser_bytes=1000)
        best = choose_precision(spec, checkpoint, where, quality=Quality.MAX, is_compiling=True)
        assert best.precision is BF16
        assert not best.is_dequantized
    both = [
        choose_precision(SDXL, CheckpointInfo(), H100, quality=quality)
        for quality in (Quality.MAX, Quality.DEFAULT)
    ]
    assert both == [QuantizationPlan(precision=Precision.FLOAT16)] * 2


@pytest.mark.parametrize(
    ("checkpoint", "where", "requested", "reason"),
    [
        (BAKED_8, H100, None, "flux-dev is baked in float8_dynamic here"),
        (BAKED_16, H100, FLOAT8, "flux-dev is set to float8_dynamic here"),
        (BAKED_16, RTX_4090, None, "flux-dev in bfloat16 does not fit on this GPU"),
    ],
)
def test_max_is_refused_where_it_cannot_be_had(checkpoint, where, requested, reason):
    """The caller's: a host that answered for it could be brought down by anybody."""
    with pytest.raises(InvalidInput) as caught:
        choose_precision(FLUX, checkpoint, where, quality=Quality.MAX, requested=requested)
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("quality", "max")
    assert problem.accepted == f"another quality: {reason}"


@pytest.mark.parametrize(
    ("spec", "checkpoint", "where", "requested", "error", "part"),
    [
        (FLUX, BAKED_16, CPU, None, DeviceUnavailable, "CUDA only"),
        (
            SDXL,
            CheckpointInfo(),
            H100,
            FLOAT8,
            ModelUnavailable,
            "cannot run in float8_dynamic: its family",
        ),
        (FLUX, BAKED_8, H100, BF16, ModelUnavailable, "baked in float8_dynamic and cannot run in"),
        (FLUX, BAKED_8, H100, INT8, ModelUnavailable, "cannot run in int8_dynamic"),
        (FLUX, BAKED_16, A100, FLOAT8, DeviceUnavailable, "8.9 or higher.* this one is Ampere"),
        (FLUX, BAKED_8, OLD_TORCH, FLOAT8, DeviceUnavailable, "this one is Ada"),
        (FLUX, BAKED_16, RTX_4090, BF16, ModelUnavailable, "needs about 26 GiB"),
    ],
)
def test_impossible_choices_are_refused(spec, checkpoint, where, requested, error, part):
    with pytest.raises(error, match=part):
        choose_precision(spec, checkpoint, where, requested=requested)


@pytest.mark.parametrize("requested", [FLOAT8, WEIGHT_ONLY, INT8, BF16, Precision.FLOAT32])
def test_what_the_deployment_asks_for_is_what_runs(requested):
    assert choose_precision(FLUX, BAKED_16, H100, requested=requested).precision is requested


@pytest.mark.parametrize("is_compiling", [False, True])
def test_model_that_keeps_16_bits_is_never_quantized(is_compiling):
    spec = CATALOG["flux-dev-16bit"]
    choice = choose_precision(spec, BAKED_16, H100, is_compiling=is_compiling)
    assert (choice.precision, choice.t5) == (BF16, None)
    for checkpoint, requested in ((BAKED_16, FLOAT8), (BAKED_8, None)):
        with pytest.raises(ModelUnavailable, match="flux-dev-16bit"):
            choose_precision(spec, checkpoint, H100, requested=requested)


def test_model_without_t5_has_no_format_for_it():
    spec = CATALOG["sd35-medium"]
    alone = replace(
        spec, family=spec.family.variant(without=["text_encoder_3"], denoiser_size=None)
    )
    assert choose_precision(spec, BAKED_8, RTX_4090).t5 is FLOAT8
    assert choose_precision(alone, BAKED_8, RTX_4090).t5 is None


def test_float8_weights_can_be_used_to_save_memory_only():
    assert choose_precision(FLUX, BAKED_8, H100, requested=WEIGHT_ONLY).precision is WEIGHT_ONLY


@pytest.mark.parametrize(
    ("model", "checkpoint", "requested", "expected"),
    [
        ("flux-dev", BF16, None, "max default turbo"),
        ("flux-dev", None, None, "max default turbo"),
        ("flux-dev", FLOAT8, None, "default turbo"),
        ("flux-dev", BF16, FLOAT8, "default turbo"),
        ("flux-dev", BF16, INT8, "default turbo"),
        ("flux-dev", BF16, BF16, "max default turbo"),
        ("flux-dev-16bit", BF16, None, "max default turbo"),
        ("sdxl-lightning", None, None, "max default"),
        ("flux-schnell", BF16, None, "max default"),
        ("flux-schnell", FLOAT8, None, "default"),
        ("sdxl", Precision.FLOAT16, None, "max default"),
        ("sd15", None, None, "max default"),
    ],
)
def test_offer_follows_from_what_is_stored_and_set(model, checkpoint, requested, expected):
    assert " ".join(offered_qualities(CATALOG[model], checkpoint, requested)) == expected


stored_ones = st.builds(
    CheckpointInfo,
    denoiser=st.none() | st.sampled_from(STORED_PRECISIONS),
    denoiser_bytes=st.integers(0, 60 * GIB),
    is_t5_float8=st.booleans(),
)
places = st.just(CPU) | st.builds(
    Hardware,
    gpu=st.sampled_from(load_gpu_classes()),
    memory_bytes=st.integers(8 * GIB, 200 * GIB),
    has_float8=st.booleans(),
)


@given(
    spec=st.sampled_from([*CATALOG.values()]),
    checkpoint=stored_ones,
    where=places,
    quality=st.sampled_from(Quality),
    requested=st.none() | st.sampled_from(Precision),
    is_compiling=st.booleans(),
)
def test_nothing_is_chosen_that_the_place_cannot_run_or_the_files_do_not_hold(
    spec, checkpoint, where, quality, requested, is_compiling
):
    choose = {"requested": requested, "is_compiling": is_compiling}
    try:
        choice = choose_precision(spec, checkpoint, where, quality=quality, **choose)
    except WorkerError as error:
        assert isinstance(error, DeviceUnavailable | ModelUnavailable | InvalidInput)
        return
    is_quantized = spec.quantization is not None
    assert choice.precision is not FLOAT8 or where.gpu is None or where.has_float8
    assert is_quantized or not choice.precision.is_8_bit
    assert choice.is_dequantized == (
        is_quantized and checkpoint.is_float8 and not choice.precision.is_8_bit
    )
    if requested and quality is not Quality.MAX:
        assert choice.precision is requested
    if quality is Quality.MAX:
        assert not choice.precision.is_8_bit
        assert not choice.is_dequantized
    if is_quantized and where.memory_bytes and not choice.precision.is_8_bit:
        width = 2 if choice.precision is Precision.FLOAT32 else 1
        held = checkpoint.denoiser_bytes * width * (2 if checkpoint.is_float8 else 1)
        assert held + WORKING_BYTES <= where.memory_bytes
