"""FLUX.2 klein at random weights: images and edits are those of stock diffusers."""

from dataclasses import replace

import numpy as np
import pytest
from diffusers import Flux2KleinPipeline
from PIL import Image
from support.condition_images import as_base64
from support.feature_jobs import check_features, feature_desk
from support.loras import lora_file, with_loras
from support.random_pipelines import (
    FLOAT32,
    IMAGES,
    NAME,
    PROMPTS,
    RandomFamily,
    most_off,
    requests_of,
    write_flux2_klein,
)
from support.tiny_models import to_pixels
from support.variant_runs import input_image

from pixpod.engine.compilation.calls import RegionForward
from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.memory.budget import Budget
from pixpod.engine.memory.needs import need_of
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.precision.quantization import is_8_bit
from pixpod.job import Mode
from pixpod.testing.random_loras import random_lora


@pytest.fixture(scope="module")
def klein(tmp_path_factory):
    return RandomFamily.make(tmp_path_factory.mktemp("klein"), "flux2-klein", write_flux2_klein)


@pytest.fixture(scope="module")
def together(klein):
    return klein.editor.generate(requests_of(klein.editor))


@pytest.fixture(scope="module")
def edited(klein):
    return klein.editor.generate(requests_of(klein.editor, Mode.EDIT))


def test_batch_is_that_of_stock_diffusers(klein, together):
    assert most_off(together, klein.stock_images(Flux2KleinPipeline, guidance_scale=1.0)) <= 1
    assert most_off(together[:1], together[1:2]) > 8


def test_edit_of_each_row_is_that_of_stock_diffusers(klein, edited, together):
    """Whose pipeline takes the images of one prompt only."""
    for index, image in enumerate(IMAGES):
        stock = klein.stock_images(
            Flux2KleinPipeline, image=Image.fromarray(image), guidance_scale=1.0
        )
        assert most_off(edited[index : index + 1], stock[index : index + 1]) <= 1
    assert most_off(edited, together) > 8


def test_images_that_are_edited_together_are_those_of_stock_diffusers(klein, edited):
    first, second, third = requests_of(klein.editor, Mode.EDIT)
    rows = [
        with_references(first, IMAGES[1]),
        with_references(second, IMAGES[2]),
        with_references(third, IMAGES[0]),
    ]
    found = klein.editor.generate(rows)
    for index in range(3):
        images = [Image.fromarray(IMAGES[(index + step) % 3]) for step in range(2)]
        stock = klein.stock_images(Flux2KleinPipeline, image=images, guidance_scale=1.0)
        assert most_off(found[index : index + 1], stock[index : index + 1]) <= 1
    assert most_off(found, edited) > 8


def with_references(request, *images):
    references = tuple(map(input_image, images))
    conditions = replace(request.conditions, references=references)
    return replace(request, num_references=len(images), conditions=conditions)


def test_row_of_a_batch_equals_the_image_alone(klein, edited):
    for row, request in zip(edited, requests_of(klein.editor, Mode.EDIT), strict=True):
        assert most_off(klein.editor.generate([request]), [row]) <= 1


def test_guidance_is_that_of_stock_diffusers(klein, together):
    found = klein.guided.generate(requests_of(klein.guided, guidance_scale=3.0))
    assert most_off(found, klein.stock_images(Flux2KleinPipeline, guidance_scale=3.0)) <= 1
    assert most_off(found, together) > 8
    other = requests_of(klein.guided, guidance_scale=3.0, negative_prompt="blurred")
    assert most_off(klein.guided.generate(other), found) > 8


def test_lora_of_each_row_is_that_of_stock_diffusers(klein, together, tmp_path):
    model = klein.editor.load()
    paths = [random_lora(model, tmp_path, seed, strength=0.2, is_whole=True) for seed in (1, 2)]
    one, other = map(lora_file, paths)
    rows = requests_of(klein.editor)
    given = [with_loras(row, file) for row, file in zip(rows, (one, other, one), strict=True)]
    found = klein.editor.generate(given)
    first, second = (
        klein.stock_images(Flux2KleinPipeline, path, guidance_scale=1.0) for path in paths
    )
    assert most_off(found, [first[0], second[1], first[2]]) <= 1
    assert most_off(found, together) > 8


def test_plan_offloads_stage_by_stage_and_changes_no_pixel(klein, edited):
    editor = klein.editor
    need = need_of(editor.spec, FLOAT32, editor.weights, editor.load().keys)
    largest = max(need.stage_bytes(stage) for stage in need.stages)
    plan = make_plan([need], Budget(gpu_bytes=largest, overhead_bytes=0))
    assert plan.offloaded
    given = requests_of(editor, Mode.EDIT)
    assert np.array_equal(editor.generate(given, plan=plan), edited)


def test_memory_of_an_edit_is_for_the_tokens_of_all_images(klein):
    plain, edit = (klein.editor.denoising(mode) for mode in (Mode.TEXT_TO_IMAGE, Mode.EDIT))
    assert edit.image_bytes == pytest.approx(2 * plain.image_bytes, abs=1)
    several = klein.editor.denoising(Mode.EDIT, num_references=2)
    assert several.image_bytes == pytest.approx(4 * plain.image_bytes, abs=2)


def test_blocks_are_compiled_and_change_no_pixel(klein, tmp_path):
    rows = requests_of(klein.editor, Mode.EDIT)[:2]
    expected = klein.editor.generate(rows)
    model = klein.editor.load()
    store = CompiledStore(tmp_path)
    compilation = compile_model(model, store, backend="eager", only={"transformer"})
    model = replace(model, compilation=compilation)
    assert np.array_equal(klein.editor.generate(rows, model=model), expected)
    assert compilation.modes == {"transformer": "jit"}
    assert compilation.warnings == []
    for blocks in (model.denoiser.transformer_blocks, model.denoiser.single_transformer_blocks):
        assert isinstance(blocks[0].forward, RegionForward)


def test_float8_is_in_blocks_and_modulation_alone(klein):
    editor = klein.in_float8()
    children = editor.load().denoiser.named_children()
    assert {name for name, child in children if is_8_bit(child)} == {
        "transformer_blocks",
        "single_transformer_blocks",
        "double_stream_modulation_img",
        "double_stream_modulation_txt",
        "single_stream_modulation",
    }
    found, in_16_bit = (
        np.stack(each.generate(requests_of(each, Mode.EDIT)))
        for each in (editor, klein.in_bfloat16())  # whose noise is that of 16 bits, too
    )
    assert 0 < np.abs(found - in_16_bit).mean() < 4


@pytest.fixture(scope="module")
def desk(klein, tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    with feature_desk(NAME, klein.editor.load(), klein.root, folder) as desk:
        yield desk


def test_jobs_run_in_float8_and_encode_an_image_once(desk):
    given = {"model": NAME, "prompt": PROMPTS[0], "image": as_base64(IMAGES[0])}
    first, second = desk.reply(**given, seed=1), desk.reply(**given, seed=2)
    assert "error" not in first, first
    assert first["model"]["precision"] == "float8_dynamic"
    assert {"text_encode", "image_encode"} <= first["timings_ms"].keys()
    assert not {"text_encode", "image_encode"} & second["timings_ms"].keys()
    sized = desk.reply(**given, width=96, height=48)
    assert to_pixels(sized["images"][0]).shape == (48, 96, 3)


def test_too_many_images_are_refused(desk):
    reply = desk.reply(model=NAME, prompt=PROMPTS[0], image=["QQ=="] * 5)
    assert (
        '{"field": "image", "value": "a list of 5", '
        f'"accepted": "at most 4 images for {NAME}"' in reply["error"]
    )
    reply = desk.reply(model=NAME, prompt=PROMPTS[0], image=[as_base64(IMAGES[0]), "QQ=="])
    assert reply["error"].startswith("image_refused: ")
    assert '"field": "image[1]"' in reply["error"]


def test_text_that_is_too_long_is_refused(desk):
    reply = desk.reply(model=NAME, prompt="a" * 120)
    assert '"field": "prompt", "value": "' in reply["error"]
    assert 'tokens", "accepted": "at most 128 tokens"' in reply["error"]


def test_each_feature_ends_as_the_table_says(desk):
    check_features(desk, NAME, "flux2-klein")
