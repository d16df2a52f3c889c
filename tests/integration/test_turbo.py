"""Step caching on the tiny FLUX: what is left out, and that nothing is left behind."""

import pytest
import torch
from support import loading
from support.tiny_models import trained_scenes

from pixpod.engine.execution import step_cache
from pixpod.engine.execution.step_cache import step_caching
from pixpod.families import FLUX, Precision
from pixpod.job import Quality
from pixpod_tools.tiny.checker import check

CPU = torch.device("cpu")
STEPS = 16
SCENE = trained_scenes(8)[3]


def load(precision):
    model = loading.load("flux-tiny", loading.shipped("flux-tiny"), precision, CPU)
    return model.full_pipeline()


@pytest.fixture(scope="module")
def pipe():
    return load(Precision.FLOAT8_DYNAMIC)


def call(pipe, prompt=SCENE.caption, steps=STEPS, seed=0, **options):
    with torch.inference_mode():
        return pipe(
            prompt=prompt,
            width=64,
            height=64,
            num_inference_steps=steps,
            guidance_scale=3.5,
            max_sequence_length=48,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="np",
            **options,
        ).images[0]


def caching(pipe, quality, steps=STEPS):
    return step_caching(pipe.transformer, FLUX.step_cache_blocks, quality, steps)


def generate(pipe, quality, steps=STEPS, **options):
    """The image, and how many calls of the denoiser were left out."""
    with caching(pipe, quality, steps) as skipped:
        image = call(pipe, steps=steps, **options)
    return image, skipped.num_calls


def state_of(transformer):
    return {
        name: (id(module), type(module), sorted(vars(module)))
        for name, module in transformer.named_modules()
        if name
    }


@pytest.fixture(scope="module")
def plain(pipe):
    """Eight steps without anything left out."""
    return call(pipe, steps=8)


@pytest.fixture(scope="module")
def fast(pipe):
    return generate(pipe, Quality.TURBO, prompt=SCENE.caption)


def test_steps_are_left_out_and_the_prompt_is_still_obeyed(fast):
    image, num_skipped = fast
    assert 0 < num_skipped < STEPS
    verdict = check((image * 255).round().astype("uint8"), SCENE)
    assert verdict.background
    assert verdict.colour


def test_nothing_is_left_behind(pipe, plain, fast):
    before = state_of(pipe.transformer)
    again, _ = generate(pipe, Quality.TURBO, prompt=SCENE.caption)
    assert (again == fast[0]).all(), "each image begins anew"
    assert state_of(pipe.transformer) == before
    assert (call(pipe, steps=8) == plain).all()


def test_nothing_is_left_behind_by_an_image_that_fails(pipe, plain):
    before = state_of(pipe.transformer)

    def stop(pipe, step, timestep, tensors):
        if step == 2:
            raise KeyboardInterrupt
        return tensors

    with pytest.raises(KeyboardInterrupt):
        generate(pipe, Quality.TURBO, steps=8, callback_on_step_end=stop)
    assert state_of(pipe.transformer) == before
    assert (call(pipe, steps=8) == plain).all()


@pytest.mark.parametrize(("quality", "steps"), [("default", 28), ("max", 28), ("turbo", 7)])
def test_other_qualities_and_few_steps_change_nothing(pipe, quality, steps):
    before = state_of(pipe.transformer)
    with caching(pipe, Quality(quality), steps) as skipped:
        assert state_of(pipe.transformer) == before
    assert skipped.num_calls == 0


def test_true_guidance_remembers_for_each_of_its_two_images(pipe, monkeypatch):
    monkeypatch.setattr(step_cache, "THRESHOLD_8_BIT", 1e9)
    options = {"negative_prompt": "a blue square", "true_cfg_scale": 2.0}
    assert generate(pipe, Quality.TURBO, steps=8, **options)[1] == 2 * 7


@pytest.mark.parametrize(
    ("precision", "expected"), [(Precision.BFLOAT16, 7), (Precision.FLOAT8_DYNAMIC, 0)], ids=str
)
def test_rounded_activations_have_a_threshold_of_their_own(precision, expected, monkeypatch):
    """So high that all is left out but the first step, or so low that nothing is."""
    monkeypatch.setattr(step_cache, "THRESHOLD", 1e9)
    monkeypatch.setattr(step_cache, "THRESHOLD_8_BIT", 0.0)
    assert generate(load(precision), Quality.TURBO, steps=8)[1] == expected


def test_blocks_of_the_denoiser_are_called_as_they_are(pipe):
    """Compiled code goes by the block: hooks on it would have it compiled again."""
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    with caching(pipe, Quality.TURBO):
        shims = [
            *pipe.transformer.transformer_blocks,
            *pipe.transformer.single_transformer_blocks,
        ]
        assert [shim.block for shim in shims] == blocks
        assert not any(hasattr(block, "_diffusers_hook") for block in blocks)
