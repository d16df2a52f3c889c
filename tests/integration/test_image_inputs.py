"""Jobs that begin with an image, with and without a mask, through the whole worker."""

import json

import numpy as np
import pytest
from support.condition_images import as_base64, draw, other_scene, psnr, source_scenes
from support.tiny_models import MODELS, Desk, build_tiny_worker, share, to_pixels

from pixpod_tools.tiny.checker import check

STEPS = 20
STRENGTHS = (0.1, 0.3, 0.5, 0.7)
FEW, MANY = 8, 48
LEAST_KEPT = {"flux-tiny": 0.90, "sd35-tiny": 0.91, "sdxl-tiny": 0.65, "sd15-tiny": 0.65}
SCENE = source_scenes(1)[0]
SOURCE = draw(SCENE)
MASK = np.zeros((64, 64), np.uint8)
MASK[20:44, 20:44] = 255


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    worker = build_tiny_worker(tmp_path_factory.mktemp("out"))
    worker.start()
    yield Desk(worker)
    worker.stop()


def job(model, scene=SCENE, **given):
    defaults = {
        "model": model,
        "prompt": other_scene(scene).caption,
        "image": as_base64(draw(scene)),
        "num_inference_steps": STEPS,
        "seed": 1,
    }
    return defaults | given


def images_of(reply):
    assert "error" not in reply, reply["error"]
    return [to_pixels(image) for image in reply["images"]]


def problems_of(reply):
    code, _, text = reply["error"].partition(": ")
    return code, [problem["field"] for problem in json.loads(text)["problems"]]


def judge(desk, model, count):
    """Shares by strength: source kept, its place kept, prompt followed; and the mean PSNR."""
    scenes = source_scenes(count)
    rows = {}
    for strength in STRENGTHS:
        jobs = [job(model, scene, strength=strength, seed=n) for n, scene in enumerate(scenes)]
        found = [images_of(reply)[0] for reply in desk.replies(jobs)]
        pairs = list(zip(found, scenes, strict=True))
        verdicts = [check(image, scene) for image, scene in pairs]
        rows[strength] = (
            share([verdict.is_right for verdict in verdicts]),
            share([verdict.position for verdict in verdicts]),
            share([check(image, other_scene(scene)).is_right for image, scene in pairs]),
            float(np.mean([psnr(image, draw(scene)) for image, scene in pairs])),
        )
    return rows


@pytest.mark.parametrize("model", MODELS)
def test_strength_decides_between_image_and_prompt_of_8_jobs(desk, model):
    rows = judge(desk, model, FEW)
    assert rows[0.1][0] >= LEAST_KEPT[model] - 1 / FEW
    assert rows[0.7][2] >= 0.70 - 1 / FEW
    levels = [row[3] for row in rows.values()]
    assert levels == sorted(levels, reverse=True)


@pytest.mark.acceptance
@pytest.mark.parametrize("model", MODELS)
def test_strength_decides_between_image_and_prompt_of_48_jobs(desk, model):
    rows = judge(desk, model, MANY)
    print(f"\n{model}, {MANY} jobs\nstrength  source kept  place kept  prompt followed  PSNR")
    for strength, (kept, place, followed, level) in rows.items():
        print(f"{strength:8.1f}  {kept:11.0%}  {place:10.0%}  {followed:15.0%}  {level:4.1f}")
    assert rows[0.1][0] >= LEAST_KEPT[model]
    assert rows[0.1][1] >= 0.85
    assert rows[0.7][2] >= 0.70
    levels = [row[3] for row in rows.values()]
    assert levels == sorted(levels, reverse=True)


def inpaint(desk, model, count):
    """Share of images whose mask is covered by the prompt's colour; asserts what is outside."""
    scenes = source_scenes(count)
    jobs = [job(model, scene, mask=as_base64(MASK), seed=n) for n, scene in enumerate(scenes)]
    covered = []
    for reply, scene in zip(desk.replies(jobs), scenes, strict=True):
        (found,) = images_of(reply)
        assert np.array_equal(found[MASK == 0], draw(scene)[MASK == 0])
        wanted = np.array(other_scene(scene).colour.rgb)
        near = np.abs(found[MASK == 255].astype(int) - wanted).max(axis=1) < 64
        covered.append(near.mean() >= 0.60)
    return share(covered)


@pytest.mark.parametrize("model", MODELS)
def test_what_a_mask_keeps_is_equal_and_the_rest_follows_the_prompt(desk, model):
    assert inpaint(desk, model, 4) >= 0.5


@pytest.mark.acceptance
@pytest.mark.parametrize("model", MODELS)
def test_masks_of_40_jobs_are_covered_by_the_colour_of_the_prompt(desk, model):
    covered = inpaint(desk, model, 40)
    print(f"\n{model}: {covered:.0%} of 40 masks are covered by the prompt's colour")
    assert covered >= 0.80


@pytest.mark.parametrize("model", MODELS)
def test_row_of_a_batch_equals_the_image_alone(desk, model):
    jobs = [job(model, scene, strength=0.6, seed=n) for n, scene in enumerate(source_scenes(4))]
    jobs[1]["mask"] = jobs[2]["mask"] = as_base64(MASK)
    together = [images_of(reply)[0] for reply in desk.replies(jobs)]
    for alone, row in zip(jobs, together, strict=True):
        (image,) = images_of(desk.reply(**alone, deterministic=True))
        assert np.abs(image.astype(int) - row).max() <= 1


def test_plain_image_is_the_same_before_and_after(desk):
    plain = {"model": "sdxl-tiny", "prompt": "a red circle on a blue background", "seed": 3}
    before = images_of(desk.reply(**plain))
    images_of(desk.reply(**job("sdxl-tiny", mask=as_base64(MASK))))
    assert np.array_equal(images_of(desk.reply(**plain)), before)


def test_reply_counts_the_steps_that_ran_and_names_the_phases(desk):
    once = as_base64(255 - SOURCE)
    reply = desk.reply(**job("sdxl-tiny", image=once, strength=0.3))
    assert reply["steps"] == 6
    assert next(iter(reply["timings_ms"])) == "fetch"
    assert {"image_encode", "denoise"} <= reply["timings_ms"].keys()
    again = desk.reply(**job("sdxl-tiny", image=once, strength=0.3, seed=9))
    assert "image_encode" not in again["timings_ms"], "an image is encoded once"


def test_size_of_the_image_is_generated_and_a_change_is_named(desk):
    scene = draw(SCENE, width=100, height=70)
    reply = desk.reply(**job("sd15-tiny", image=as_base64(scene), strength=0.1))
    assert (reply["images"][0]["width"], reply["images"][0]["height"]) == (96, 64)
    assert reply["warnings"] == [
        "image: it has 100x70 pixels, and 96x64 are generated, a size that the model serves"
    ]


def test_grey_of_a_mask_blends(desk):
    grey = np.full((64, 64), 128, np.uint8)
    (found,) = images_of(desk.reply(**job("flux-tiny", mask=as_base64(grey), strength=0.7)))
    (white,) = images_of(
        desk.reply(**job("flux-tiny", mask=as_base64(np.full_like(grey, 255)), strength=0.7))
    )
    assert psnr(found, SOURCE) > psnr(white, SOURCE) + 3


@pytest.mark.parametrize(
    ("given", "code", "fields"),
    [
        ({"image": "AAAA"}, "image_refused", ["image"]),
        ({"mask": "AAAA"}, "image_refused", ["mask"]),
        ({"image": "AAAA", "mask": "AAAA"}, "image_refused", ["image", "mask"]),
        ({"mask": as_base64(MASK[:32])}, "image_refused", ["mask"]),
        ({"mask": as_base64(np.zeros_like(MASK))}, "image_refused", ["mask"]),
        (
            {"image": as_base64(SOURCE[:20, :20]), "mask": as_base64(np.zeros_like(MASK[:20]))},
            "image_refused",
            ["image", "mask"],
        ),
        ({"image": "http://127.0.0.1:9/a.png"}, "invalid_input", ["image"]),
        ({"strength": 0.04}, "invalid_input", ["strength"]),
    ],
)
def test_bad_image_fails_its_own_job_with_all_that_is_wrong(desk, given, code, fields):
    bad, good = desk.replies([job("sdxl-tiny", **given), job("sdxl-tiny", strength=0.1)])
    assert problems_of(bad) == (code, fields)
    assert images_of(good)
