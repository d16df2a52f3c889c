"""Z-Image at random weights: images are those of stock diffusers, whoever shares their batch."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import ZImageImg2ImgPipeline, ZImagePipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
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
    write_z_image,
)
from support.tiny_models import to_pixels

from pixpod.engine.adapters.reading import read_adapter
from pixpod.engine.compilation.calls import RegionForward
from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.memory.budget import Budget
from pixpod.engine.memory.needs import need_of
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.precision.quantization import is_8_bit
from pixpod.errors import WeightsRefused
from pixpod.job import Mode
from pixpod.testing.random_loras import random_lora

MASK = np.zeros((64, 64), np.uint8)
MASK[16:40, 16:56] = 255
BLOCKS = ("layers", "noise_refiner", "context_refiner")


@pytest.fixture(scope="module")
def z_image(tmp_path_factory):
    return RandomFamily.make(tmp_path_factory.mktemp("z-image"), "z-image", write_z_image)


@pytest.fixture(scope="module")
def together(z_image):
    return z_image.editor.generate(requests_of(z_image.editor))


def test_batch_of_texts_of_several_lengths_is_that_of_stock_diffusers(z_image, together):
    stock = z_image.stock_images(ZImagePipeline, guidance_scale=0.0)
    assert most_off(together, stock) <= 1


def test_row_of_a_batch_equals_the_image_alone(z_image, together):
    for row, request in zip(together, requests_of(z_image.editor), strict=True):
        assert most_off(z_image.editor.generate([request]), [row]) <= 1


def test_prompts_decide_about_the_images(z_image, together):
    swapped = requests_of(z_image.editor, prompts=PROMPTS[::-1])
    assert most_off(z_image.editor.generate(swapped[:1]), together[:1]) > 8


def test_guidance_is_that_of_stock_diffusers(z_image, together):
    text = "blurred, far away and dark"
    given = requests_of(z_image.guided, guidance_scale=3.0, negative_prompt=text)
    found = z_image.guided.generate(given)
    options = {"guidance_scale": 3.0, "negative_prompt": [text] * 3}
    assert most_off(found, z_image.stock_images(ZImagePipeline, **options)) <= 1
    assert most_off(found, together) > 8


@pytest.fixture
def mode_of_the_vae(monkeypatch):
    """Stock pipelines sample from the VAE's distribution, by numbers of the row's generator."""
    mode = DiagonalGaussianDistribution.mode
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator: mode(self))


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_image_to_image_is_that_of_stock_diffusers(z_image, mode_of_the_vae, strength):
    given = requests_of(z_image.editor, Mode.IMAGE_TO_IMAGE, strength=strength)
    images = torch.from_numpy(np.stack(IMAGES)).permute(0, 3, 1, 2).float() / 255
    options = {"image": images, "strength": strength, "guidance_scale": 0.0}
    stock = z_image.stock_images(ZImageImg2ImgPipeline, **options)
    assert most_off(z_image.editor.generate(given), stock) <= 1


def test_outside_of_a_mask_are_the_pixels_of_the_image(z_image):
    given = requests_of(z_image.editor, Mode.INPAINT, mask=MASK, strength=1.0)
    for row, image in zip(z_image.editor.generate(given), IMAGES, strict=True):
        assert np.array_equal(row[MASK == 0], image[MASK == 0])
        assert (row[MASK == 255] != image[MASK == 255]).mean() > 0.9


def test_lora_of_each_row_is_that_of_stock_diffusers(z_image, together, tmp_path):
    model = z_image.editor.load()
    paths = [random_lora(model, tmp_path, seed, strength=0.2) for seed in (1, 2)]
    one, other = map(lora_file, paths)
    rows = requests_of(z_image.editor)
    given = [with_loras(row, file) for row, file in zip(rows, (one, other, one), strict=True)]
    found = z_image.editor.generate(given)
    first, second = (
        z_image.stock_images(ZImagePipeline, path, guidance_scale=0.0) for path in paths
    )
    assert most_off(found, [first[0], second[1], first[2]]) <= 1
    assert most_off(found, together) > 8


def test_lora_of_a_layer_that_sees_all_rows_as_one_is_refused(z_image, tmp_path):
    path = tmp_path / "style.safetensors"
    layer = "transformer.cap_embedder.1"
    halves = {
        f"{layer}.lora_A.weight": torch.ones(4, 64),
        f"{layer}.lora_B.weight": torch.ones(96, 4),
    }
    safetensors.torch.save_file(halves, path)
    with pytest.raises(WeightsRefused, match="layers that Z-Image has"):
        read_adapter(lora_file(path), z_image.editor.load())


def test_plan_offloads_stage_by_stage_and_changes_no_pixel(z_image, together):
    editor = z_image.editor
    need = need_of(editor.spec, FLOAT32, editor.weights, editor.load().keys)
    largest = max(need.stage_bytes(stage) for stage in need.stages)
    plan = make_plan([need], Budget(gpu_bytes=largest, overhead_bytes=0))
    assert plan.offloaded
    assert np.array_equal(editor.generate(requests_of(editor), plan=plan), together)


def test_blocks_are_compiled_and_change_no_pixel(z_image, tmp_path):
    rows = requests_of(z_image.editor)[:2]
    expected = z_image.editor.generate(rows)
    model = z_image.editor.load()
    store = CompiledStore(tmp_path)
    compilation = compile_model(model, store, backend="eager", only={"transformer"})
    model = replace(model, compilation=compilation)
    assert np.array_equal(z_image.editor.generate(rows, model=model), expected)
    assert compilation.modes == {"transformer": "jit"}
    assert compilation.warnings == []
    for blocks in BLOCKS:
        assert isinstance(getattr(model.denoiser, blocks)[0].forward, RegionForward)


def test_float8_is_in_the_blocks_alone_and_padding_stays_a_number(z_image, together):
    editor = z_image.in_float8()
    children = editor.load().denoiser.named_children()
    assert {name for name, child in children if is_8_bit(child)} == {*BLOCKS}
    found = editor.generate(requests_of(editor))
    assert 0 < np.abs(np.stack(found) - np.stack(together)).mean() < 4


def test_cache_keeps_texts_of_several_lengths():
    cache, given = ConditionCache(10**6), {"prompt_embeds": [torch.ones(5, 4)]}
    cache.put(b"key", given)
    assert cache.size_bytes == 80
    kept = cache.get(b"key", torch.device("cpu"))
    assert kept is not None
    (found,) = kept["prompt_embeds"]
    assert torch.equal(found, given["prompt_embeds"][0])
    assert found is not given["prompt_embeds"][0]


@pytest.fixture(scope="module")
def desk(z_image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    with feature_desk(NAME, z_image.editor.load(), z_image.root, folder) as desk:
        yield desk


def test_jobs_run_in_float8_and_encode_a_text_and_an_image_once(desk):
    given = {"model": NAME, "prompt": PROMPTS[0], "image": as_base64(IMAGES[0])}
    first, second = desk.reply(**given, seed=1), desk.reply(**given, seed=2)
    assert "error" not in first, first
    assert first["model"]["precision"] == "float8_dynamic"
    assert {"text_encode", "image_encode"} <= first["timings_ms"].keys()
    assert not {"text_encode", "image_encode"} & second["timings_ms"].keys()
    sized = desk.reply(**given, width=96, height=48)
    assert to_pixels(sized["images"][0]).shape == (48, 96, 3)


def test_text_that_is_too_long_is_refused_or_cut(desk):
    long = desk.reply(model=NAME, prompt="a" * 120)
    assert '"value": "139 tokens", "accepted": "at most 128 tokens"' in long["error"]
    cut = desk.reply(model=NAME, prompt="a" * 120, on_long_prompt="truncate")
    assert cut["warnings"] == ["prompt: only 128 of its 139 tokens are read"]


def test_each_feature_ends_as_the_table_says(desk):
    check_features(desk, NAME, "z-image")
