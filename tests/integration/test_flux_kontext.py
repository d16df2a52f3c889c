"""FLUX.1 Kontext: a random transformer of the tiny FLUX's size edits images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from support.condition_images import as_base64
from support.feature_jobs import check_features
from support.flux_variants import NAME, bake_variant, write_entry, write_repository
from support.tiny_models import Desk, build_tiny_worker, to_pixels
from support.variant_runs import ImageEditor, noise_images

from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.memory.budget import Budget
from pixpod.engine.memory.needs import need_of
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.families import Precision
from pixpod.job import Mode
from pixpod.testing.random_loras import random_lora

FAMILY = "flux-kontext"
FLOAT32 = QuantizationPlan(precision=Precision.FLOAT32)
FLOAT8 = QuantizationPlan(precision=Precision.FLOAT8_DYNAMIC)
PROMPTS = ("make it red", "turn the square into a circle")
IMAGES = noise_images(2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The repository, a catalog file, and weights baked in two formats."""
    folder = tmp_path_factory.mktemp("kontext")
    write_repository(folder / "repository", FAMILY, {})
    spec = write_entry(folder / "models.toml", FAMILY)
    bake_variant(folder / "float32", folder / "repository", spec, FLOAT32)
    bake_variant(folder / "float8", folder / "repository", spec, FLOAT8)
    return folder


@pytest.fixture(scope="module")
def editor(root):
    return ImageEditor(write_entry(root / "models.toml", FAMILY), root / "float32", FLOAT32)


def requests_of(editor):
    return [
        editor.request(Mode.EDIT, prompt, image, seed=seed)
        for seed, (prompt, image) in enumerate(zip(PROMPTS, IMAGES, strict=True))
    ]


@pytest.fixture(scope="module")
def together(editor):
    return editor.generate(requests_of(editor))


def test_images_of_a_batch_are_those_of_stock_diffusers(root, together):
    pipe = FluxKontextPipeline.from_pretrained(root / "repository", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pixels = torch.from_numpy(np.stack(IMAGES)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        found = pipe(
            image=pixels,
            prompt=list(PROMPTS),
            width=64,
            height=64,
            max_area=64 * 64,
            _auto_resize=False,
            num_inference_steps=3,
            guidance_scale=3.5,
            max_sequence_length=48,
            generator=[torch.Generator().manual_seed(seed) for seed in range(2)],
            output_type="np",
        ).images
    expected = (found * 255).round().astype(int)
    assert np.abs(np.stack(together) - expected).max() <= 1


def test_row_of_a_batch_equals_the_image_alone(editor, together):
    for row, request in zip(together, requests_of(editor), strict=True):
        (alone,) = editor.generate([request])
        assert np.abs(alone - row).max() <= 1


def test_image_decides_about_the_result(editor, together):
    first = requests_of(editor)[0]
    other = editor.request(Mode.EDIT, PROMPTS[0], IMAGES[1], seed=0)
    plain = editor.request(Mode.TEXT_TO_IMAGE, PROMPTS[0], None, seed=0)
    (edited,) = editor.generate([other])
    (generated,) = editor.generate([plain])
    assert first.sampling == other.sampling
    assert np.abs(edited - together[0]).max() > 8
    assert np.abs(generated - together[0]).max() > 8


def test_an_edit_counts_the_tokens_of_both_images(editor):
    stages = {mode: editor.denoising(mode).image_bytes for mode in (Mode.EDIT, Mode.TEXT_TO_IMAGE)}
    assert stages[Mode.EDIT] == 2 * stages[Mode.TEXT_TO_IMAGE]


def test_plan_offloads_stage_by_stage_and_changes_no_pixel(editor, together):
    need = need_of(editor.spec, FLOAT32, editor.weights, editor.load().keys)
    assert [stage.name.value for stage in need.stages] == [
        "text_encode",
        "image_encode",
        "denoise",
        "decode",
    ]
    largest = max(need.stage_bytes(stage) for stage in need.stages)
    plan = make_plan([need], Budget(gpu_bytes=largest, overhead_bytes=0))
    assert plan.offloaded
    found = editor.generate(requests_of(editor), plan=plan)
    assert np.array_equal(found, together)


def test_regions_are_compiled_and_change_no_pixel(editor, together, tmp_path):
    model = editor.load()
    compilation = compile_model(model, CompiledStore(tmp_path), backend="eager")
    found = editor.generate(requests_of(editor), model=replace(model, compilation=compilation))
    assert np.array_equal(found, together)
    assert compilation.modes == {"transformer": "jit", "vae": "jit"}
    assert compilation.warnings == []


@pytest.fixture(scope="module")
def desk(root, editor, tmp_path_factory):
    loras = tmp_path_factory.mktemp("loras")
    random_lora(editor.load(), loras, 1).rename(loras / f"{NAME}-style.safetensors")
    worker = build_tiny_worker(
        tmp_path_factory.mktemp("out"),
        PIXPOD_LORA_DIR=str(loras),
        PIXPOD_CATALOG=str(root / "models.toml"),
        PIXPOD_WEIGHTS_DIR=str(root / "float8"),
    )
    worker.start()
    yield Desk(worker)
    worker.stop()


def test_job_edits_an_image_in_float8_and_encodes_it_once(desk):
    given = {"model": NAME, "prompt": PROMPTS[0], "image": as_base64(IMAGES[0]), "seed": 1}
    given |= {"num_inference_steps": 3}
    first, second = desk.reply(**given), desk.reply(**given | {"prompt": PROMPTS[1]})
    assert "error" not in first, first
    assert first["model"]["precision"] == "float8_dynamic"
    assert "image_encode" in first["timings_ms"]
    assert "image_encode" not in second["timings_ms"]
    assert to_pixels(first["images"][0]).shape == (64, 64, 3)
    sized = desk.reply(**given, width=96, height=48)
    assert to_pixels(sized["images"][0]).shape == (48, 96, 3)
    plain = desk.reply(model=NAME, prompt=PROMPTS[0], seed=1)
    assert "image_encode" not in plain["timings_ms"]


def test_each_feature_ends_as_the_table_says(desk):
    check_features(desk, NAME, FAMILY)
