"""A request's pipeline calls are those of its golden file, and its images are stock diffusers'.

No pixels are stored. After a wanted change, write the golden files anew and read the diff:

    PYTHONPATH=src:tests .venv/bin/python -m integration.test_calls
"""

import functools
import json
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    FluxPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from support import calls, loading
from support.call_cases import CASES, FLOAT32, FP8, Case
from support.factories import GOLDEN, OFFER

from pixpod.contract.payload import parse_job
from pixpod.engine.model import LoadedModel, Pipeline
from pixpod.engine.precision.quantization import quantize_float8_dynamic
from pixpod.families import FLUX, Precision
from pixpod.settings import SOURCE_WEIGHTS_DIR

CPU = torch.device("cpu")
TINY = SOURCE_WEIGHTS_DIR / "tiny"
FOLDER = GOLDEN / "calls"

Levels = npt.NDArray[np.uint8]
"""8-bit images, (images, 3, height, width)."""


# --- the product's side --------------------------------------------------------------------------


@functools.cache
def load(model: str, precision: Precision) -> LoadedModel:
    return loading.load(model, loading.shipped(model), precision, CPU)


def run(case: Case) -> tuple[Levels, dict[str, Any]]:
    """Images of a case, and the description of the calls that made them."""
    job = {"id": "job-1", "input": {"model": case.model, **case.input}}
    request = parse_job(job, OFFER).request
    generation, described = calls.generate(load(case.model, case.precision), request)
    images = [
        np.frombuffer(image.pixels.pixels, np.uint8).reshape(request.height, request.width, 3)
        for image in generation.images
    ]
    return np.stack(images).transpose(0, 3, 1, 2), json.loads(json.dumps(described))


run_once = functools.cache(lambda name: run(CASES[name]))


# --- stock diffusers -----------------------------------------------------------------------------


@functools.cache
def stock_pipeline(model: str, precision: Precision) -> Pipeline:
    dtype = torch.float32 if precision is FLOAT32 else torch.bfloat16
    if model == "flux-tiny":
        pipe = FluxPipeline.from_pretrained(TINY / "flux-tiny", dtype=dtype)
        if precision is FP8:
            quantize_float8_dynamic(pipe.transformer, CPU, FLUX.quantization)
    elif model == "sdxl-tiny":
        pipe = StableDiffusionXLPipeline.from_pretrained(TINY / "sdxl-tiny", dtype=dtype)
    else:
        pipe = StableDiffusionPipeline.from_pretrained(TINY / "sd15-tiny", dtype=dtype)
    if precision is not FLOAT32:
        # on a CPU a worker decodes in float32
        pipe.vae.decoder.float().register_forward_pre_hook(lambda _, given: (given[0].float(),))
        # torch has another kernel for products in bfloat16 where the weights could be trained
        denoiser = pipe.transformer if model == "flux-tiny" else pipe.unet
        denoiser.requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock_images(case: Case) -> Levels:
    """The images of the call that is written out by hand."""
    pipe = stock_pipeline(case.model, case.precision)
    own = pipe.scheduler
    found = []
    for seeds in case.seeds:
        if case.scheduler:
            class_name, options = case.scheduler
            pipe.scheduler = getattr(diffusers, class_name).from_config(own.config, **options)
        if case.cache:
            pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=case.cache))
        try:
            with torch.inference_mode():
                images = pipe(
                    **case.stock,
                    num_images_per_prompt=len(seeds),
                    generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                    output_type="pt",
                ).images
        finally:
            pipe.scheduler = own
            if case.cache:
                pipe.transformer.disable_cache()
        found.append((images.float() * 255).round().to(torch.uint8).numpy())
    return np.concatenate(found)


def levels_apart(found: Levels, expected: Levels) -> list[int]:
    """The largest difference of each image."""
    assert found.shape == expected.shape
    return [int(each) for each in np.abs(found.astype(int) - expected).max(axis=(1, 2, 3))]


def limit_of(case: Case) -> int:
    return 0 if case.precision is FLOAT32 else 1


# --- what holds ----------------------------------------------------------------------------------


def golden(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_each_case_has_its_golden_file():
    assert {path.stem for path in FOLDER.iterdir()} == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_calls_are_those_of_the_golden_file(name):
    assert run_once(name)[1] == golden(name)


@pytest.mark.parametrize("name", CASES)
def test_images_are_those_of_stock_diffusers(name):
    case = CASES[name]
    assert max(levels_apart(run_once(name)[0], stock_images(case))) <= limit_of(case)


# --- what would be noticed -----------------------------------------------------------------------


def other_guidance(case: Case) -> Case:
    scale = case.stock["guidance_scale"]
    assert scale == 3.0
    return replace(
        case,
        input={**case.input, "guidance_scale": 3.1},
        stock={**case.stock, "guidance_scale": 3.1},
    )


def one_step_more(case: Case) -> Case:
    steps = case.stock["num_inference_steps"] + 1
    return replace(
        case,
        input={**case.input, "num_inference_steps": steps},
        stock={**case.stock, "num_inference_steps": steps},
    )


def other_last_seed(case: Case) -> Case:
    (seeds,) = case.seeds
    seeds = (*seeds[:-1], 4321)
    return replace(case, input={**case.input, "seed": list(seeds)}, seeds=(seeds,))


MUTANTS = (other_guidance, one_step_more, other_last_seed)
NAMES = (
    "flux-four-seeds-float32",
    "flux-four-seeds-float8_dynamic",
    "sdxl-defaults-bfloat16",
    "sdxl-four-seeds-float32",
    "sd15-four-seeds-float32",
    "sd15-negative-prompt-bfloat16",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mutate", MUTANTS)
def test_other_call_gives_images_that_differ(mutate, name):
    """Of all rows, or of the last one where only its seed is another."""
    apart = levels_apart(run_once(name)[0], stock_images(mutate(CASES[name])))
    if mutate is other_last_seed:
        assert max(apart[:-1], default=0) <= limit_of(CASES[name])
        apart = apart[-1:]
    assert min(apart) > limit_of(CASES[name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mutate", MUTANTS)
def test_other_request_differs_from_the_golden_file(mutate, name):
    described = run(mutate(CASES[name]))[1]
    assert described != golden(name)
    is_same_batch = described["batch_key"] == golden(name)["batch_key"]
    assert is_same_batch == (mutate is other_last_seed)
    assert described["calls"] != golden(name)["calls"]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.iterdir():
        path.unlink()
    for name in CASES:
        text = json.dumps(run_once(name)[1], indent=2, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
