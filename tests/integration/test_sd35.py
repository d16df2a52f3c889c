"""Stable Diffusion 3.5 at toy size: like diffusers, in batches, in float8, and without T5."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from support import loading
from support.condition_images import draw, source_scenes
from support.sd35 import NAME, SD35_TINY, T5, bake_own, write_entry
from support.tiny_models import Desk, build_tiny_worker, trained_scenes
from support.variant_runs import ImageEditor

from pixpod.catalog import load_catalog
from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.memory.budget import Budget
from pixpod.engine.memory.needs import need_of
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.engine.precision.quantization import is_8_bit
from pixpod.families import Precision
from pixpod.job import Mode
from pixpod.methods import StageName
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod_tools.tiny.checker import check

FLOAT32 = QuantizationPlan(precision=Precision.FLOAT32)
FLOAT8 = QuantizationPlan(precision=Precision.FLOAT8_DYNAMIC, t5=Precision.FLOAT8_DYNAMIC)
PROMPTS = ("a red circle on a blue background", "a white cross on a green background")
IMAGES = [draw(scene) for scene in source_scenes(2)]
FEW, MANY = 10, 36


@pytest.fixture(scope="module")
def editor():
    return ImageEditor(load_catalog()["sd35-tiny"], SOURCE_WEIGHTS_DIR, FLOAT32)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Directories of the same model without T5, and in float8."""
    root = tmp_path_factory.mktemp("sd35")
    bake_own(root / "clip", write_entry(root / "clip.toml", [T5]), FLOAT32)
    bake_own(root / "float8", write_entry(root / "float8.toml"), FLOAT8)
    return root


@pytest.fixture(scope="module")
def clip_editor(root):
    return ImageEditor(load_catalog(root / "clip.toml")[NAME], root / "clip", FLOAT32)


def requests_of(editor, mode=Mode.TEXT_TO_IMAGE, prompts=PROMPTS, **changes):
    images = (None, None) if mode is Mode.TEXT_TO_IMAGE else IMAGES
    rows = zip(prompts, images, strict=True)
    return [editor.request(mode, *row, seed=n, **changes) for n, row in enumerate(rows)]


@pytest.fixture(scope="module")
def together(editor):
    return editor.generate(requests_of(editor))


def stock_images(pipeline_class, folder, without=(), **options):
    absent = dict.fromkeys(without)
    pipe = pipeline_class.from_pretrained(folder, dtype=torch.float32, **absent)
    pipe.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        found = pipe(
            prompt=list(PROMPTS),
            num_inference_steps=3,
            guidance_scale=3.0,
            max_sequence_length=48,
            height=64,
            width=64,
            generator=[torch.Generator().manual_seed(seed) for seed in range(2)],
            output_type="np",
            **options,
        ).images
    return (found * 255).round().astype(int)


def test_images_of_a_batch_are_those_of_stock_diffusers(editor, together):
    assert np.abs(stock_images(StableDiffusion3Pipeline, SD35_TINY) - together).max() <= 1
    negative = "a black square"
    expected = stock_images(StableDiffusion3Pipeline, SD35_TINY, negative_prompt=[negative] * 2)
    found = editor.generate(requests_of(editor, negative_prompt=negative))
    assert np.abs(expected - found).max() <= 1
    assert np.abs(np.stack(found) - together).max() > 8


def test_strength_is_that_of_stock_diffusers(editor, monkeypatch):
    """Stock diffusers takes numbers from the generators for samples of the VAE's distribution."""
    mode = DiagonalGaussianDistribution.mode
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator: mode(self))
    images = torch.from_numpy(np.stack(IMAGES)).permute(0, 3, 1, 2).float() / 255
    expected = stock_images(StableDiffusion3Img2ImgPipeline, SD35_TINY, image=images, strength=0.6)
    found = editor.generate(requests_of(editor, Mode.IMAGE_TO_IMAGE, strength=0.6))
    assert np.abs(expected - found).max() <= 1


def test_row_of_a_batch_equals_the_image_alone(editor, together):
    for row, request in zip(together, requests_of(editor), strict=True):
        (alone,) = editor.generate([request])
        assert np.abs(alone - row).max() <= 1


def test_neighbours_change_no_pixel(editor):
    first, second = requests_of(editor)
    _, third = requests_of(editor, prompts=("one", "a black square"))
    pairs = [editor.generate([first, other]) for other in (second, third)]
    assert np.array_equal(pairs[0][0], pairs[1][0])
    assert not np.array_equal(pairs[0][1], pairs[1][1])


def test_second_text_is_for_the_second_encoder(editor, together):
    given = {"prompt_2": PROMPTS[1]}
    changed = editor.generate(requests_of(editor, **given))
    assert np.abs(changed[0] - together[0]).max() > 8
    assert np.abs(changed[1] - together[1]).max() == 0


def test_regions_are_compiled_and_change_no_pixel(editor, together, tmp_path):
    model = editor.load()
    compilation = compile_model(model, CompiledStore(tmp_path), backend="eager")
    model = replace(model, compilation=compilation)
    assert np.array_equal(editor.generate(requests_of(editor), model=model), together)
    assert compilation.modes == {"transformer": "jit", "vae": "jit"}
    assert compilation.warnings == []


def test_plan_offloads_stage_by_stage_and_changes_no_pixel(editor, together):
    need = need_of(editor.spec, FLOAT32, editor.weights, editor.load().keys)
    largest = max(need.stage_bytes(stage) for stage in need.stages)
    plan = make_plan([need], Budget(gpu_bytes=largest, overhead_bytes=0))
    assert plan.offloaded
    assert np.array_equal(editor.generate(requests_of(editor), plan=plan), together)


def test_float8_is_for_blocks_and_t5_alone(root, together):
    spec = load_catalog(root / "float8.toml")[NAME]
    in_float8 = ImageEditor(spec, root / "float8", FLOAT8)
    model = in_float8.load()
    images = in_float8.generate(requests_of(in_float8), model=model)
    assert 0 < np.abs(np.stack(images) - together).mean() < 8
    denoiser = model.denoiser
    assert is_8_bit(denoiser.transformer_blocks[0].attn)
    assert is_8_bit(denoiser.transformer_blocks[0].ff_context)
    spared = (denoiser.time_text_embed, denoiser.context_embedder, denoiser.proj_out)
    assert not any(map(is_8_bit, spared))
    assert [is_8_bit(model.components[name]) for name in spec.family.text_encoders] == [
        False,
        False,
        True,
    ]


class TestWithoutT5:
    def test_directory_is_one_that_stock_diffusers_loads(self, root, clip_editor):
        folder = clip_editor.weights.folder
        assert not (folder / T5).exists()
        assert not (folder / "tokenizer_3").exists()
        expected = stock_images(StableDiffusion3Pipeline, folder, without=(T5, "tokenizer_3"))
        assert np.abs(expected - clip_editor.generate(requests_of(clip_editor))).max() <= 1

    def test_zeros_in_the_place_of_its_tokens_are_no_fault_in_float8(self, clip_editor):
        plan = QuantizationPlan(precision=Precision.FLOAT8_DYNAMIC)
        found = ImageEditor(clip_editor.spec, clip_editor.weights.folder.parent, plan)
        expected = clip_editor.generate(requests_of(clip_editor))
        assert np.abs(np.stack(found.generate(requests_of(found))) - expected).mean() < 8

    def test_files_with_t5_serve_it_as_well(self, clip_editor):
        weights = loading.shipped("sd35-tiny")
        own = ImageEditor(clip_editor.spec, clip_editor.weights.folder.parent, FLOAT32)
        own.weights = weights
        found = own.generate(requests_of(own), model=own.load())
        expected = clip_editor.generate(requests_of(clip_editor))
        assert np.abs(np.stack(found) - expected).max() <= 1

    def test_plan_has_two_text_encoders(self, clip_editor):
        need = need_of(clip_editor.spec, FLOAT32, clip_editor.weights)
        stage = next(each for each in need.stages if each.name is StageName.TEXT_ENCODE)
        assert stage.components == ("text_encoder", "text_encoder_2")

    def test_long_prompt_is_refused_and_colours_are_right(self, root, tmp_path):
        worker = build_tiny_worker(
            tmp_path,
            PIXPOD_CATALOG=str(root / "clip.toml"),
            PIXPOD_WEIGHTS_DIR=str(root / "clip"),
        )
        worker.start()
        try:
            desk = Desk(worker)
            reply = desk.reply(model=NAME, prompt="circle " * 100)
            verdicts = desk.judge(NAME, trained_scenes(8))
        finally:
            worker.stop()
        assert "at most 77 tokens" in reply["error"]
        assert sum(each.background and each.colour for each in verdicts) >= 7


def share_in_colours(pipe, scenes, *, reads_clip, reads_t5):
    """The share of images in both colours if some encoders read nothing."""
    captions = [scene.caption for scene in scenes]
    nothing = [""] * len(scenes)
    clip = captions if reads_clip else nothing
    embeds, negative, pooled, negative_pooled = pipe.encode_prompt(
        prompt=clip,
        prompt_2=clip,
        prompt_3=captions if reads_t5 else nothing,
        max_sequence_length=48,
        device="cpu",
    )
    images = pipe(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        pooled_prompt_embeds=pooled,
        negative_pooled_prompt_embeds=negative_pooled,
        width=64,
        height=64,
        num_inference_steps=8,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(scenes))],
        output_type="np",
    ).images
    found = [
        check((image * 255).round().astype(np.uint8), scene)
        for image, scene in zip(images, scenes, strict=True)
    ]
    return np.mean([verdict.background and verdict.colour for verdict in found])


def judge_encoders(editor, count):
    pipe, scenes = editor.load().full_pipeline(), trained_scenes(count)
    return {
        name: share_in_colours(pipe, scenes, **reads)
        for name, reads in {
            "T5 alone": {"reads_clip": False, "reads_t5": True},
            "nothing": {"reads_clip": False, "reads_t5": False},
        }.items()
    }


def test_t5_alone_says_the_colours_of_10_prompts(editor):
    shares = judge_encoders(editor, FEW)
    assert shares["T5 alone"] >= 0.8
    assert shares["nothing"] <= 0.2


@pytest.mark.acceptance
def test_t5_alone_says_the_colours_of_36_prompts(editor):
    shares = judge_encoders(editor, MANY)
    print(f"\nsd35-tiny, {MANY} prompts: {shares}")
    assert shares["T5 alone"] >= 0.85
    assert shares["nothing"] <= 0.1
