"""LoRAs through the whole worker: styles, scales, stacks, shared batches, replies and files."""

import base64
import io
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from support.lora_worker import LORAS, lora_desk
from support.loras import shipped_lora
from support.tiny_models import to_pixels, trained_scenes

from pixpod_tools.tiny.styles import Style, has_style, style_distance

MODELS = ("flux-tiny", "sdxl-tiny")
FEW, MANY = 8, 48
MAX_LEVELS = 4
LEAST_STACKED = 0.75
PROMPT = "a red circle on a blue background"
SCENES = [
    scene
    for scene in trained_scenes(112)
    if not {scene.background, scene.colour} & {style.colour for style in Style}
]
"""Scenes in other colours than those of the styles."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Both models; FLUX in FP8."""
    desk = lora_desk(
        tmp_path_factory.mktemp("loras"),
        ",".join(MODELS),
        PIXPOD_PRECISION="flux-tiny=float8_dynamic,sdxl-tiny=float32",
    )
    yield desk
    desk.worker.stop()


def named(model, style, **given):
    return {"source": f"{model.removesuffix('-tiny')}-{style}", **given}


def images(desk, model, count, *loras):
    """Images of so many scenes with these LoRAs; seeds are the scenes' positions."""
    jobs = [
        {"model": model, "prompt": scene.caption, "seed": seed, "loras": list(loras)}
        for seed, scene in enumerate(SCENES[:count])
    ]
    return [image_of(reply) for reply in desk.replies(jobs)]


def image_of(reply):
    assert "error" not in reply, reply["error"]
    return to_pixels(reply["images"][0])


def share_with(found, style):
    return np.mean([has_style(image, style) for image in found])


def distance(found, style):
    return np.mean([style_distance(image, style) for image in found])


def are_close(some, others):
    """Jobs may run in batches of other sizes, where sums have other orders."""
    pairs = zip(some, others, strict=True)
    return all(np.abs(one.astype(int) - other).max() <= MAX_LEVELS for one, other in pairs)


def judge(desk, model, count):
    """Check a model's styles on so many scenes; prints the figures."""
    plain = images(desk, model, count)
    for style in Style:
        at = {
            scale: images(desk, model, count, named(model, style, scale=scale))
            for scale in (0, 0.5, 1)
        }
        far, half, near = (distance(found, style) for found in at.values())
        way = (far - half) / (far - near)
        shares = {scale: share_with(found, style) for scale, found in at.items()}
        print(f"{model} {style}: {shares[1]:.0%} at 1, {shares[0]:.0%} at 0, {way:.0%} at 0.5")
        assert shares[1] >= 0.95 and shares[0] <= 0.05
        assert 0.20 <= way <= 0.85
        assert are_close(at[0], plain)
    both = images(desk, model, count, *(named(model, style) for style in Style))
    other = images(desk, model, count, *(named(model, style) for style in reversed(Style)))
    stacked = np.mean([all(has_style(image, style) for style in Style) for image in both])
    print(f"{model}: both styles on {stacked:.0%} of stacked ones")
    assert stacked >= LEAST_STACKED
    assert are_close(both, other)
    assert are_close(images(desk, model, count), plain)


@pytest.mark.parametrize("model", MODELS)
def test_styles_appear_at_their_scales_and_leave_nothing(desk, model):
    judge(desk, model, FEW)


@pytest.mark.acceptance
@pytest.mark.parametrize("model", MODELS)
def test_styles_appear_at_their_scales_on_many_scenes(desk, model):
    judge(desk, model, MANY)


def stacks(model):
    """LoRAs A, B, A and B, and A at another scale."""
    frame, bar = (named(model, style) for style in Style)
    return [[frame], [bar], [frame, bar], [{**frame, "scale": 0.5}]]


@contextmanager
def holding_the_device(desk, num_waiting):
    """Have the first batch wait until so many requests wait behind it; yields all sizes."""
    runnable = type(desk.worker.engine.loader.load("sdxl-tiny").result())
    execute, sizes = runnable.execute, list[int]()

    def wait_first(self, items, on_step):
        if not sizes:
            deadline = time.monotonic() + 60
            while len(desk.worker.engine._queue._entries) <= num_waiting:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        sizes.append(len(items))
        return execute(self, items, on_step)

    runnable.execute = wait_first
    try:
        yield sizes
    finally:
        runnable.execute = execute


@pytest.mark.parametrize("model", MODELS)
def test_four_jobs_with_different_loras_are_one_batch(desk, model):
    desk.replies([{"model": model, "prompt": PROMPT, "loras": stacks(model)[0]}])
    given = {"model": model, "prompt": PROMPT, "num_inference_steps": 3, "seed": 5}
    jobs = [{**given, "width": 96, "height": 96}]
    jobs += [{**given, "loras": loras} for loras in stacks(model)]
    with holding_the_device(desk, 4) as sizes:
        first, *mixed = desk.replies(jobs)
    assert sizes == [1, 4]
    assert len({image_of(reply).tobytes() for reply in mixed}) == 4
    used = [[lora["scale"] for lora in reply["adapters"]] for reply in mixed]
    assert (first["adapters"], used) == ([], [[1.0], [1.0], [1.0, 1.0], [0.5]])


def test_reply_names_each_lora_and_the_phases(desk):
    bar, frame = (shipped_lora(f"sdxl-{style}") for style in (Style.BAR, Style.FRAME))
    desk.files["my%20bar.safetensors"] = bar.path.read_bytes()
    desk.files["bar.safetensors"] = bar.path.read_bytes()
    loras = [{"source": desk.url("bar.safetensors?token=pomegranate"), "scale": 0.5}]
    loras += [{"source": "sdxl-frame", "sha256": frame.sha256}]
    given = {"model": "sdxl-tiny", "prompt": PROMPT, "loras": loras}
    first, second = desk.reply(**given), desk.reply(**given)
    expected = [
        {"name": "bar", "sha256": bar.sha256, "scale": 0.5, "cached": False},
        {"name": "sdxl-frame", "sha256": frame.sha256, "scale": 1.0, "cached": True},
    ]
    found = [
        {name: lora[name] for name in expected[0]}
        for lora in sorted(first["adapters"], key=lambda lora: lora["name"])
    ]
    assert found == expected
    assert {lora["name"]: lora["rank"] for lora in first["adapters"]} == {"bar": 8, "sdxl-frame": 4}
    assert all(lora["layers"] > 100 for lora in first["adapters"])
    assert all(lora["cached"] for lora in second["adapters"])
    assert desk.requests[-2:] == [("/bar.safetensors", 200), ("/bar.safetensors", 304)]
    assert {"fetch", "adapt", "denoise"} <= first["timings_ms"].keys()
    assert "pomegranate" not in str(first)


def test_file_of_an_image_names_its_loras(desk):
    loras = [{"source": "sdxl-frame", "scale": 0.25}]
    reply = desk.reply(model="sdxl-tiny", prompt=PROMPT, loras=loras)
    file = io.BytesIO(base64.b64decode(reply["images"][0]["data"]))
    text = Image.open(file).info["parameters"]
    sha256 = shipped_lora("sdxl-frame").sha256
    assert f'Lora hashes: "sdxl-frame: {sha256[:12]}", Lora scales: "sdxl-frame: 0.25"' in text


def test_lora_of_a_text_encoder_does_not_meet_the_embedding_of_another_scale(desk):
    """The file has layers of both text encoders; embeddings of prompts are cached."""
    given = {"model": "sdxl-tiny", "prompt": "a green cross on a white background", "seed": 3}
    at = {
        scale: desk.reply(**given, loras=[named("sdxl-tiny", Style.BAR, scale=scale)])
        for scale in (1, 0, 0.5)
    }
    again = desk.reply(**given, loras=[named("sdxl-tiny", Style.BAR, scale=1)])
    assert np.array_equal(image_of(again), image_of(at[1]))
    assert np.array_equal(image_of(at[0]), image_of(desk.reply(**given)))
    assert len({image_of(reply).tobytes() for reply in at.values()}) == 3


def test_turbo_keeps_the_style(desk):
    given = {"model": "flux-tiny", "prompt": PROMPT, "num_inference_steps": 20, "seed": 1}
    reply = desk.reply(**given, quality="turbo", loras=[named("flux-tiny", Style.FRAME)])
    assert has_style(image_of(reply), Style.FRAME)
    assert any(warning.startswith("turbo: ") for warning in reply["warnings"])


def test_describe_lists_the_loras_of_the_deployment(desk):
    reply = desk.reply(describe=True)
    assert reply["loras"] == sorted(path.stem for path in LORAS.glob("*.safetensors"))
    assert {model["limits"]["max_loras"] for model in reply["models"]} == {8}
