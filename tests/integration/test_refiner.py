"""Refiners of sdxl-tiny, through the whole worker: with its own UNet they change nothing."""

import asyncio
import threading
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from support.control_images import as_png, cases, images_of, largest_difference
from support.leaks import Fault, injecting_faults
from support.loras import LORAS
from support.refiners import (
    AESTHETIC,
    ALIEN,
    MODEL,
    OWN,
    aesthetic_unet,
    refiner_deployment,
)
from support.tiny_models import Desk, build_tiny_worker, to_pixels

from pixpod.contract.payload import parse_job
from pixpod.families import SDXL
from pixpod.job import Quality
from pixpod.settings import SOURCE_WEIGHTS_DIR

CASES = cases(4)
CASE = CASES[0]
ONE_STEP = ("Euler", "Euler a", "DDIM", "LCM", "TCD")
"""Schedulers that remember nothing from step to step."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refiners")
    worker = build_tiny_worker(
        folder / "out", PIXPOD_LORA_DIR=str(LORAS), **refiner_deployment(folder)
    )
    worker.start()
    yield Desk(worker)
    worker.stop()


def loaded(desk):
    return desk.worker.engine.loader.load(MODEL, Quality.DEFAULT).result().loaded


def run(desk, *jobs):
    return images_of(desk.replies(jobs))


def plain(case=CASE, steps=12, **given):
    return case.job(MODEL, num_inference_steps=steps, **given)


def refined(case=CASE, steps=9, by=3, name=OWN, **given):
    return plain(case, steps, refiner={"name": name, "num_inference_steps": by}, **given)


@contextmanager
def counting(desk):
    """Count the calls of the model's UNet and of the refiner, and keep the arguments of these."""
    model = loaded(desk)
    seen: dict[str, list[dict[str, Any]]] = {"model": [], "refiner": []}
    unets = {"model": model.denoiser, "refiner": model.extras[OWN].module}
    with ExitStack() as hooks:
        for name, unet in unets.items():

            def note(module, args, kwargs, name=name):
                seen[name].append(kwargs)

            hooks.callback(unet.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield seen


# --- the same image as without --------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["Euler", "Euler a"])
@pytest.mark.parametrize(("steps", "by"), [(30, 10), (16, 4)])
def test_own_unet_gives_the_undivided_image(desk, scheduler, steps, by):
    run(desk, refined())
    [whole] = run(desk, plain(steps=steps + by, scheduler=scheduler))
    with counting(desk) as seen:
        [reply] = desk.replies([refined(steps=steps, by=by, scheduler=scheduler)])
    [divided] = images_of([reply])
    assert np.array_equal(divided, whole)
    assert (len(seen["model"]), len(seen["refiner"])) == (steps, by)
    assert reply["steps"] == steps + by
    assert reply["refiner"] == {"name": OWN, "steps": by}
    assert reply["timings_ms"]["refine"] > 0


@pytest.mark.parametrize("scheduler", ONE_STEP[2:])
def test_schedulers_without_a_memory_go_on_exactly(desk, scheduler):
    fields = {"scheduler": scheduler}
    [whole], [divided] = run(desk, plain(**fields)), run(desk, refined(**fields))
    assert np.array_equal(divided, whole)


ALL_SCHEDULERS = tuple({id(spec): name for name, spec in SDXL.schedulers.items()}.values())
"""Each once, under the usual alias if it has one."""

MAX_MEAN_LEVELS = {"DPM++ 2M SDE": 0.25, "DPM++ 2M SDE Karras": 1.0}
"""The latter remember noise as well."""


@pytest.mark.acceptance
def test_all_schedulers_go_on_but_for_those_that_are_refused(desk):
    """40 steps, 8 images; a scheduler that remembers earlier steps begins anew."""
    few = cases(8)
    for name in ALL_SCHEDULERS:
        jobs = [refined(case, 30, 10, scheduler=name) for case in few]
        if not SDXL.schedulers[name].can_be_split:
            assert name == "Heun"
            assert "scheduler" in desk.replies(jobs)[0]["error"]
            continue
        divided = run(desk, *jobs)
        whole = run(desk, *[plain(case, 40, scheduler=name) for case in few])
        most, mean = (
            largest_difference(divided, whole),
            np.mean(np.abs(np.subtract(divided, whole, dtype=int))),
        )
        print(f"\n{name:20} largest difference {most:3}, mean {mean:.3f}", end="")
        assert most == 0 if name in ONE_STEP else mean <= MAX_MEAN_LEVELS.get(name, 0.05)


def test_share_counts_the_models_steps(desk):
    share = {"name": OWN, "high_noise_frac": 0.8}
    [reply] = desk.replies([plain(steps=15, refiner=share)])
    assert reply["refiner"] == {"name": OWN, "steps": 3}
    assert largest_difference(images_of([reply]), run(desk, plain(steps=15))) == 0


def mask():
    levels = np.zeros((64, 64), np.uint8)
    levels[:, 32:] = 255
    return as_png(levels)


@pytest.mark.parametrize("has_mask", [False, True])
def test_image_to_begin_with_is_refined_as_well(desk, has_mask):
    """The strength leaves 8 steps of 12, of which the refiner runs 3."""
    given = {"image": as_png(CASES[1].given), "strength": 0.7, "scheduler": "Euler a"}
    if has_mask:
        given["mask"] = mask()
    [whole] = run(desk, plain(**given))
    with counting(desk) as seen:
        [divided] = run(desk, refined(**given))
    assert np.array_equal(divided, whole)
    assert (len(seen["model"]), len(seen["refiner"])) == (5, 3)


@pytest.mark.parametrize("has_image", [False, True])
def test_controls_end_before_the_refiner(desk, has_image):
    """A net that takes part until then does the same without a refiner."""
    given = {"image": as_png(CASES[1].given), "strength": 1.0} if has_image else {}
    control = CASE.control(end=0.75)
    given["controlnets"] = [control]
    [whole], [divided] = run(desk, plain(**given)), run(desk, refined(**given))
    assert np.array_equal(divided, whole)
    assert not np.array_equal(whole, run(desk, plain(**{**given, "controlnets": []}))[0])


# --- the refiner's own way ------------------------------------------------------------------------


def test_refiner_runs_without_loras(desk):
    """It reads the same embeddings, and its UNet has no slots."""
    loras = [{"source": "sdxl-frame"}, {"source": "sdxl-bar"}]
    with counting(desk) as seen:
        [reference] = run(desk, refined())
        [divided] = run(desk, refined(loras=loras))
    text, text_with_loras = (seen["refiner"][at]["encoder_hidden_states"] for at in (0, 3))
    assert torch.equal(text, text_with_loras)
    assert len(seen["refiner"]) == 6
    assert not np.array_equal(divided, reference)
    assert not np.array_equal(divided, run(desk, plain(loras=loras))[0])


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"prompt_2": "a green cross on a white background", "negative_prompt": "a blue square"},
        {"guidance_scale": 0.0},
    ],
    ids=["no negative prompt", "all prompts", "unguided"],
)
def test_refiner_like_sdxls_gives_stock_diffusers_images(desk, texts):
    divided = run(desk, refined(name=AESTHETIC, **texts))
    assert largest_difference(divided, [stock_image(**texts)]) <= 1


def stock_image(prompt_2=None, negative_prompt=None, guidance_scale=3.0):
    base = StableDiffusionXLPipeline.from_pretrained(
        SOURCE_WEIGHTS_DIR / "tiny" / MODEL, dtype=torch.float32
    )
    refiner = StableDiffusionXLImg2ImgPipeline(
        **{**base.components, "unet": aesthetic_unet(), "text_encoder": None, "tokenizer": None},
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    )
    for pipe in (base, refiner):
        pipe.set_progress_bar_config(disable=True)
    generator = [torch.Generator("cpu").manual_seed(CASE.seed)]
    shared = {
        "negative_prompt": negative_prompt,
        "guidance_scale": guidance_scale,
        "num_inference_steps": 12,
        "generator": generator,
    }
    with torch.inference_mode():
        latents = base(
            CASE.prompt,
            prompt_2=prompt_2,
            height=64,
            width=64,
            denoising_end=0.75,
            output_type="latent",
            **shared,
        ).images
        image = refiner(
            prompt_2 or CASE.prompt,
            image=latents,
            denoising_start=0.75,
            output_type="pil",
            **shared,
        ).images[0]
    return np.asarray(image)


def test_refiner_that_does_not_fit_is_the_deployments_fault(desk):
    [reply] = desk.replies([refined(name=ALIEN)])
    assert reply["error"].startswith("model_unavailable: the refiner does not fit sdxl-tiny: ")
    run(desk, plain())


def test_name_is_required_where_there_are_several(desk):
    error = desk.replies([plain(refiner={"num_inference_steps": 3})])[0]["error"]
    assert "refiner.name" in error and AESTHETIC in error


# --- batches, progress, faults --------------------------------------------------------------------


@pytest.mark.parametrize("name", [OWN, AESTHETIC])
def test_image_does_not_depend_on_the_jobs_it_shares_a_batch_with(desk, name):
    jobs = [refined(case, name=name, scheduler="Euler a") for case in CASES]
    together = run(desk, *jobs)
    alone = [run(desk, {**job, "deterministic": True})[0] for job in jobs]
    assert largest_difference(together, alone) <= 1


def test_jobs_with_other_refiners_run_side_by_side(desk):
    jobs = [refined(), refined(name=AESTHETIC), plain(), refined(steps=10, by=2)]
    mixed = run(desk, *jobs)
    assert largest_difference(mixed, [run(desk, job)[0] for job in jobs]) <= 1


def test_plain_image_is_the_same_after_refined_ones(desk):
    [before] = run(desk, plain())
    run(desk, refined(), refined(name=AESTHETIC))
    [after] = run(desk, plain())
    assert np.array_equal(before, after)


def request_of(desk, **job):
    raw = {"id": "job", "input": job}
    return parse_job(raw, desk.worker.capabilities).request


def test_progress_goes_on_through_both_parts(desk):
    steps = []
    request = request_of(desk, **refined(num_images=2))
    asyncio.run(desk.worker.engine.generate(request, lambda *position: steps.append(position)))
    assert steps == [(step, 12) for step in range(1, 13)]


def test_cancelled_job_ends_in_the_refiners_steps(desk):
    """At its next step, before the job that comes after it begins."""
    with counting(desk) as seen:
        asyncio.run(cancel_at(desk, 10))
        run(desk, plain())
    assert (len(seen["model"]), len(seen["refiner"])) == (9 + 12, 2)


async def cancel_at(desk, number):
    loop, reached, cancelled = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def on_step(step, steps):
        if step == number:
            loop.call_soon_threadsafe(reached.set)
            cancelled.wait(10)

    task = asyncio.create_task(desk.worker.engine.generate(request_of(desk, **refined()), on_step))
    await reached.wait()
    task.cancel()
    await asyncio.wait({task})
    cancelled.set()
    assert task.cancelled()


def test_refiner_that_runs_out_of_memory_tries_again_with_the_same_noise(desk):
    """In its second step, when noise was added; then with half of the batch."""
    job = refined(num_images=2, scheduler="Euler a")
    [expected] = desk.replies([job])
    with injecting_faults() as faults:
        faults.current = Fault("denoise", out_of_memory, skip=10, times=2)
        [reply] = desk.replies([job])
    assert reply["warnings"] == ["the device's memory was short: the batch was halved"]
    pairs = zip(reply["images"], expected["images"], strict=True)
    assert max(largest_difference([to_pixels(a)], [to_pixels(b)]) for a, b in pairs) <= 1


def out_of_memory():
    raise torch.OutOfMemoryError("injected")
