"""Models that are distilled to few steps: the rules of their entries on the tiny SDXL's weights."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from support.loading import load, shipped
from support.tiny_models import Desk, build_tiny_worker, share, trained_scenes

from pixpod.catalog import load_catalog
from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.model_runner import ModelRunner
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.scheduling.batching import BatchItem, ItemResult
from pixpod.families import Precision

CATALOG = load_catalog()
PROMPTS = ("a red circle on a blue background", "a green square on a black background")
LIGHTNING = """
[sdxl-tiny]
family = "sdxl"
licence = "MIT"
takes_guidance = false
step_counts = [4]
schedulers = ["Euler trailing"]
precision = { cpu = "float32" }
defaults = { width = 64, height = 64, num_inference_steps = 4, scheduler = "Euler trailing" }

[sdxl-tiny.limits]
min_side_px = 32
max_side_px = 256
max_pixels = 16_384
max_steps = 4
max_guidance = 10.0
max_images = 8
"""


@pytest.fixture(scope="module")
def tiny():
    return load("sdxl-tiny", shipped("sdxl-tiny"), Precision.FLOAT32, torch.device("cpu"))


def generate(model, requests):
    items = [BatchItem(request=each, seeds=each.seeds) for each in requests]
    runner = ModelRunner(Placement(make_plan((), None)), ConditionCache(0))
    results = runner.execute(model, items, lambda step: None)
    images = [each.images[0].pixels for each in results if isinstance(each, ItemResult)]
    assert len(images) == len(requests), results
    return [pixels_of(image) for image in images]


def pixels_of(image):
    pixels = np.frombuffer(image.pixels, np.uint8)
    return pixels.reshape(image.height, image.width, 3).astype(int)


def stock_images(steps, scheduler_class):
    """Images of diffusers' own pipeline, used as the cards of these models say."""
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
        shipped("sdxl-tiny").folder, dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    pipe.scheduler = scheduler_class.from_config(config, timestep_spacing="trailing")
    with torch.inference_mode():
        found = pipe(
            list(PROMPTS),
            width=64,
            height=64,
            num_inference_steps=steps,
            guidance_scale=0.0,
            generator=[torch.Generator().manual_seed(seed) for seed in range(2)],
            output_type="np",
        ).images
    return (found * 255).round().astype(int)


@pytest.mark.parametrize(
    ("name", "steps", "scheduler_class"),
    [
        ("sdxl-lightning", 4, diffusers.EulerDiscreteScheduler),
        ("sdxl-turbo", 1, diffusers.EulerAncestralDiscreteScheduler),
        ("sdxl-turbo", 3, diffusers.EulerAncestralDiscreteScheduler),
    ],
)
def test_images_are_those_of_stock_diffusers(tiny, name, steps, scheduler_class):
    config = {**tiny.scheduler_config, "timestep_spacing": "leading"}
    model = replace(tiny, spec=CATALOG[name], scheduler_config=config, _pipelines={})
    requests = [
        model.spec.default_request(
            width=64, height=64, num_inference_steps=steps, prompt=prompt, seeds=(seed,)
        )
        for seed, prompt in enumerate(PROMPTS)
    ]
    together = generate(model, requests)
    expected = stock_images(steps, scheduler_class)
    for row, request in enumerate(requests):
        assert np.abs(together[row] - expected[row]).max() <= 1
        (alone,) = generate(model, [request])
        assert np.abs(together[row] - alone).max() <= 1
    assert np.abs(together[0] - together[1]).max() > 64


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lightning")
    catalog = folder / "models.toml"
    catalog.write_text(LIGHTNING, encoding="utf-8")
    worker = build_tiny_worker(
        folder, PIXPOD_CATALOG=str(catalog), PIXPOD_MODELS="sdxl-tiny", PIXPOD_EXTRAS=""
    )
    worker.start()
    yield Desk(worker)
    worker.stop()


def test_four_steps_without_guidance_obey_the_prompt(desk):
    verdicts = desk.judge("sdxl-tiny", trained_scenes(12))
    assert share([verdict.is_right for verdict in verdicts]) >= 0.5


def test_reply_counts_the_steps_and_others_are_refused(desk):
    reply = desk.reply(model="sdxl-tiny", prompt=PROMPTS[0])
    assert reply["steps"] == 4
    refused = desk.reply(model="sdxl-tiny", prompt=PROMPTS[0], num_inference_steps=2)
    assert "4, for which sdxl-tiny is made" in refused["error"]
