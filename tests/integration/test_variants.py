"""One model in several precisions, as the worker's own loader keeps them: what is shared, what a
float8-baked directory can and cannot give, on which GPU.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import loading
from support.factories import CATALOG
from support.tiny_models import Desk, build_tiny_worker
from transformers import T5EncoderModel

from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.loading.loader import ModelLoader
from pixpod.engine.loading.variants import plan_models
from pixpod.engine.memory.sharing import Sharing
from pixpod.engine.precision.float8 import holds_float8
from pixpod.engine.precision.precision import Hardware, QuantizationPlan
from pixpod.engine.precision.quantization import is_8_bit
from pixpod.errors import InvalidInput, ModelUnavailable
from pixpod.families import Precision
from pixpod.job import Quality
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.timeline import BootTimeline
from pixpod.weights.prefetch import Verify
from pixpod.weights.sources import BakedSource, WeightsLocator
from pixpod_tools.bake.bake import bake
from pixpod_tools.bake.recipes import ModelRecipe
from pixpod_tools.bake.sources import SourceOptions

CPU = torch.device("cpu")
FLUX = "flux-tiny"
FLOAT8, BF16 = Precision.FLOAT8_DYNAMIC, Precision.BFLOAT16


@contextmanager
def loader_of(
    directory: Path = SOURCE_WEIGHTS_DIR, *, names=(FLUX,), requested=None, compiled=None
) -> Iterator[ModelLoader]:
    loader = ModelLoader(
        models={name: CATALOG[name] for name in names},
        locator=WeightsLocator([BakedSource(directory)]),
        device="cpu",
        requested_precision=lambda name: requested,
        accepted_licences=frozenset(),
        verify=Verify.CHUNKS,
        timeline=BootTimeline(time.perf_counter),
        on_host_fault=lambda error: None,
        compiled=compiled,
    )
    try:
        yield loader
    finally:
        loader.stop()


@pytest.fixture(scope="module")
def float8_dir(tmp_path_factory):
    """Denoiser and T5 baked in float8."""
    directory = tmp_path_factory.mktemp("weights")
    recipe = ModelRecipe(model=FLUX, plan=QuantizationPlan(precision=FLOAT8, t5=FLOAT8))
    source = SourceOptions(location=None, own_models=SOURCE_WEIGHTS_DIR)
    bake(directory, recipe, CATALOG, source, 4_000_000_000)
    return directory


def test_qualities_share_all_but_the_denoiser_whichever_comes_first():
    for first, second in (
        (Quality.DEFAULT, Quality.MAX),
        (Quality.MAX, Quality.DEFAULT),
    ):
        with loader_of() as loader:
            loads = {quality: loader.load(FLUX, quality) for quality in (first, second)}
            default, best = (
                loads[quality].result().loaded for quality in (Quality.DEFAULT, Quality.MAX)
            )
            assert default.identity.precision == "float8_dynamic"
            assert best.identity.precision == "bfloat16"
            assert best.components["vae"] is default.components["vae"]
            assert best.components["text_encoder_2"] is default.components["text_encoder_2"]
            assert is_8_bit(default.components["transformer"])
            assert not is_8_bit(best.components["transformer"])
            assert best.components["transformer"] is not default.components["transformer"]


def count_t5():
    return sum(type(each) is T5EncoderModel for each in gc.get_objects())


def test_there_is_never_a_second_t5():
    gc.collect()
    before = count_t5()
    with loader_of() as loader:
        loads = [loader.load(FLUX, quality) for quality in Quality]
        models = {load.result() for load in loads}
        assert count_t5() == before + 1
        assert len(models) == 2


def generate(model):
    with torch.inference_mode():
        images = model.full_pipeline()(
            "a red circle",
            width=64,
            height=64,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
    return images


def test_models_have_what_is_the_same_in_common():
    """Loaded at the same time, by two threads. The tiny models have the same VAE; in the FLUX
    model it runs in another precision.
    """
    names = ("sdxl-tiny", "sd15-tiny", FLUX)
    with loader_of(names=names) as loader:
        sdxl, sd15, flux = (load.result().loaded for load in loader.preload(names))
        assert sdxl.components["vae"] is sd15.components["vae"]
        assert flux.components["vae"] is not sd15.components["vae"]
        assert sdxl.components["unet"] is not sd15.components["unet"]
        for model in (sdxl, sd15):
            alone = loading.load(
                model.spec.name, loading.shipped(model.spec.name), Precision.FLOAT32, CPU
            )
            assert torch.equal(generate(model), generate(alone))


def test_quality_that_runs_alike_is_the_same_model():
    with loader_of(names=("sd15-tiny",)) as loader:
        default, best = (
            loader.load("sd15-tiny", quality).result() for quality in (Quality.DEFAULT, Quality.MAX)
        )
        assert best is default


def test_preload_loads_the_defaults_only(caplog):
    caplog.set_level("INFO", logger="pixpod")
    with loader_of(names=(FLUX, "sd15-tiny")) as loader:
        models = [load.result() for load in loader.preload((FLUX, "sd15-tiny"))]
        assert [model.identity.precision for model in models] == ["float8_dynamic", "float32"]
    assert caplog.messages.count("model ready") == 2


def test_max_is_refused_where_float8_is_baked_and_others_go_on(float8_dir):
    with loader_of(float8_dir) as loader:
        with pytest.raises(InvalidInput, match="baked in float8_dynamic here"):
            loader.load(FLUX, Quality.MAX).result()
        model = loader.load(FLUX).result().loaded
        assert model.identity.precision == "float8_dynamic"
        assert holds_float8(model.components["text_encoder_2"])


def test_16_bits_that_are_requested_are_not_made_of_float8(float8_dir):
    refusal = "baked in float8_dynamic and cannot run in"
    with (
        loader_of(float8_dir, requested=BF16) as loader,
        pytest.raises(ModelUnavailable, match=refusal),
    ):
        loader.load(FLUX).result()


def test_stored_precision_is_known_without_loading(float8_dir):
    for directory, expected in ((float8_dir, FLOAT8), (SOURCE_WEIGHTS_DIR, BF16)):
        locator = WeightsLocator([BakedSource(directory)])
        assert locator.stored_precision(CATALOG[FLUX]) is expected
    assert locator.stored_precision(CATALOG["flux-dev"]) is None


@pytest.mark.parametrize("is_streamed", [False, True])
def test_float8_files_run_in_16_bits_on_a_gpu_without_float8(float8_dir, is_streamed):
    weights = BakedSource(float8_dir).find(CATALOG[FLUX])
    assert weights is not None
    plan = QuantizationPlan(precision=BF16, t5=BF16, is_dequantized=True, is_streamed=is_streamed)
    model = loading.load(FLUX, weights, plan, CPU)
    as_baked = loading.load(FLUX, weights, FLOAT8, CPU)
    assert model.identity.precision == "bfloat16 (from float8)"
    for name in ("transformer", "text_encoder_2"):
        assert holds_float8(as_baked.components[name])
        assert not is_8_bit(model.components[name])
    found = model.components["transformer"].transformer_blocks[0].attn.to_q.weight
    stored = as_baked.components["transformer"].transformer_blocks[0].attn.to_q.weight
    assert torch.equal(found, stored.dequantize())


def test_float8_files_can_save_memory_only(float8_dir):
    weights = BakedSource(float8_dir).find(CATALOG[FLUX])
    assert weights is not None
    weight_only = Precision.FLOAT8_WEIGHT_ONLY
    model = loading.load(
        FLUX, weights, QuantizationPlan(precision=weight_only, t5=weight_only), CPU
    )
    layer = model.components["transformer"].transformer_blocks[0].attn.to_q
    assert layer.weight.act_quant_kwargs is None
    assert model.identity.precision == "float8_weight_only"
    assert holds_float8(model.components["text_encoder_2"])


def test_compiling_changes_nothing_on_a_cpu_without_packages(tmp_path):
    with loader_of(names=("sd15-tiny",), compiled=CompiledStore(tmp_path)) as loader:
        model = loader.load("sd15-tiny").result().loaded
        assert model.compilation is not None
        assert model.warnings == model.cautions
    assert replace(model, compilation=None).warnings == model.warnings


@pytest.mark.parametrize("is_baked", [False, True])
def test_quantization_at_each_boot_is_logged(float8_dir, caplog, is_baked):
    caplog.set_level("INFO", logger="pixpod")
    with loader_of(float8_dir if is_baked else SOURCE_WEIGHTS_DIR) as loader:
        assert loader.load(FLUX).result().identity.precision == "float8_dynamic"
    logged = [record for record in caplog.records if "quantized at each boot" in record.message]
    assert len(logged) == (not is_baked)


@pytest.mark.parametrize("left_bytes", [0, 10**9, None])
def test_host_that_may_not_hold_offloaded_components_is_warned_of(caplog, monkeypatch, left_bytes):
    """The limit is that of a worker that has to offload (test_placement.py)."""
    monkeypatch.setattr("pixpod.engine.loading.variants.free_bytes", lambda: left_bytes)
    plan_models(
        {name: CATALOG[name] for name in ("sd15-tiny", "sdxl-tiny")},
        BakedSource(SOURCE_WEIGHTS_DIR).find,
        Hardware(),
        Sharing(),
        requested_precision=lambda name: None,
        is_compiling=False,
        memory_limit_gib=1.52,
    )
    warned = [record for record in caplog.records if "host memory may not hold" in record.message]
    assert len(warned) == (left_bytes == 0)


def test_reply_says_what_each_quality_ran_in(tmp_path):
    worker = build_tiny_worker(tmp_path)
    worker.start()
    prompt = "a red circle on a blue background"
    replies = {
        quality: Desk(worker).reply(
            model=FLUX, prompt=prompt, seed=1, num_inference_steps=20, quality=quality
        )
        for quality in ("max", "turbo", "default")
    }
    worker.stop()
    assert {quality: reply["model"]["precision"] for quality, reply in replies.items()} == {
        "max": "bfloat16",
        "turbo": "float8_dynamic",
        "default": "float8_dynamic",
    }
    assert any("turbo" in warning for warning in replies["turbo"]["warnings"])
    assert replies["default"]["warnings"] == replies["max"]["warnings"] == []
    assert len({reply["images"][0]["sha256"] for reply in replies.values()}) == 3


def test_quality_that_is_not_there_is_refused_before_anything_is_loaded(float8_dir, tmp_path):
    worker = build_tiny_worker(tmp_path, PIXPOD_WEIGHTS_DIR=str(float8_dir))
    reply = Desk(worker).reply(model=FLUX, prompt="a circle", quality="max")
    assert "one of default, turbo for flux-tiny, as this deployment is set up" in reply["error"]
