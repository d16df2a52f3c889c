"""Upscaling of finished images, through the whole worker and against transformers' own Swin2SR."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support import loading
from support.broken_weights import copy_weights, write_manifest
from support.control_images import as_png, cases, images_of, largest_difference
from support.leaks import Fault, injecting_faults
from support.tiny_models import Desk, build_tiny_worker, to_pixels
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

from pixpod.engine.base import Cancelled
from pixpod.engine.component_key import extra_key
from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.model_runner import ModelRunner
from pixpod.engine.execution.stages import UpscaleStage
from pixpod.engine.memory.offloading import OffloadableWeights
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.model import LoadedExtra
from pixpod.engine.scheduling.batching import BatchItem, ItemResult
from pixpod.families import Precision
from pixpod.job import Quality, UpscalerOptions
from pixpod.methods import StageName
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.weights.manifest import read_manifest
from pixpod_tools.tiny.upscaler import score

NAME = "swin2sr-x2-tiny"
FOLDER = SOURCE_WEIGHTS_DIR / "tiny" / "extras" / NAME
MODELS = ("sdxl-tiny", "flux-tiny")
CASES = cases(4)
CASE = CASES[0]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    worker = build_tiny_worker(tmp_path_factory.mktemp("out"))
    worker.start()
    yield Desk(worker)
    worker.stop()


@pytest.fixture(scope="module")
def stock():
    return Swin2SRForImageSuperResolution.from_pretrained(FOLDER, dtype=torch.float32).eval()


@torch.inference_mode()
def upscale(module, image):
    """An image of 8-bit levels as transformers upscales it as a whole."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    made = module(pixel_values=pixels).reconstruction[0].clamp(0, 1)
    return (255 * made).round().to(torch.uint8).permute(1, 2, 0).numpy()


def run(desk, *jobs):
    return images_of(desk.replies(jobs))


def job(case=CASE, model="sdxl-tiny", **given):
    return case.job(model, num_inference_steps=4, **given)


# --- the upscaler that ships ----------------------------------------------------------------------


def test_8_scenes_are_closer_to_the_true_ones_than_interpolated():
    found = score(FOLDER, 8)
    print(f"\n{found}")
    assert found.upscaler >= found.bicubic + 2


@pytest.mark.acceptance
def test_200_scenes_are_closer_to_the_true_ones_than_interpolated():
    found = score(FOLDER, 200)
    print(f"\n{found}")
    assert found.upscaler >= found.bicubic + 2


# --- jobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_job_gets_what_transformers_makes_of_its_image(desk, stock, model):
    """In float32 also beside a model in bfloat16."""
    plain = desk.reply(**job(model=model))
    reply = desk.reply(**job(model=model, upscale=2))
    assert largest_difference(images_of([reply]), [upscale(stock, *images_of([plain]))]) <= 1
    (image,) = reply["images"]
    assert (image["width"], image["height"]) == (128, 128)
    assert reply["upscaler"] == {"name": NAME, "scale": 2}
    assert reply["timings_ms"]["upscale"] > 0
    assert plain["upscaler"] is None
    assert "upscale" not in plain["timings_ms"]


def test_image_outside_the_mask_is_the_given_one_before_it_is_upscaled(desk, stock):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    given = {"image": as_png(CASES[1].given), "mask": as_png(mask)}
    [plain], [large] = run(desk, job(**given)), run(desk, job(**given, upscale=2))
    assert np.array_equal(plain[:, :32], CASES[1].given[:, :32])
    assert largest_difference([large], [upscale(stock, plain)]) <= 1


def test_image_does_not_depend_on_the_jobs_it_shares_a_batch_with(desk):
    jobs = [job(case, upscale=2) for case in CASES]
    together = run(desk, *jobs, job())
    alone = [run(desk, {**each, "deterministic": True})[0] for each in jobs]
    assert largest_difference(together[:-1], alone) <= 1
    assert together[-1].shape == (64, 64, 3)


def test_plain_image_is_the_same_after_upscaled_ones(desk):
    [before] = run(desk, job())
    run(desk, job(upscale=2))
    assert np.array_equal(before, run(desk, job())[0])


def test_file_says_what_made_it(desk):
    reply = desk.reply(**job(upscale=2))
    image = to_pixels(reply["images"][0])
    assert image.shape == (128, 128, 3)
    text = _parameters(reply["images"][0])
    assert f"Postprocess upscale by: 2, Postprocess upscaler: {NAME}" in text
    assert "Size: 64x64" in text


def _parameters(image):
    return Image.open(io.BytesIO(base64.b64decode(image["data"]))).info["parameters"]


def test_upscaler_that_runs_out_of_memory_takes_smaller_tiles_and_does_not_warn(desk):
    """Memory of caches is freed first, which is of no use here."""
    wide = job(upscale=2, width=256)
    [expected] = run(desk, wide)
    loaded = desk.worker.engine.loader.load("sdxl-tiny", Quality.DEFAULT).result().loaded
    widths = []
    first = loaded.extras[NAME].module.swin2sr.first_convolution
    hook = first.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[-1]))
    with injecting_faults() as faults:
        faults.current = Fault("upscale", out_of_memory, times=2)
        reply = desk.reply(**wide)
    hook.remove()
    assert reply["warnings"] == []
    assert widths == [128, 128, 128]
    assert largest_difference(images_of([reply]), [expected]) <= 1


def out_of_memory():
    raise torch.OutOfMemoryError("injected")


def test_upscaler_of_another_scale_is_the_deployments_fault(tmp_path):
    weights = copy_weights(tmp_path / "weights", "sdxl-tiny", NAME)
    entries = read_manifest(weights)
    write_manifest(weights, entries["sdxl-tiny"], replace(entries[NAME], name="mine"))
    catalog = tmp_path / "models.toml"
    catalog.write_text(
        '[extras.mine]\nkind = "upscaler"\nscale = 4\nlicence = "MIT"\ngib_16 = 0.001\n',
        encoding="utf-8",
    )
    worker = build_tiny_worker(
        tmp_path / "out", PIXPOD_WEIGHTS_DIR=str(weights), PIXPOD_CATALOG=str(catalog)
    )
    worker.start()
    desk = Desk(worker)
    assert desk.reply(**job(upscale=4))["error"].startswith("model_unavailable: mine: ")
    assert desk.reply(**job(upscale=4))["error"].endswith("expected a scale of 4, got 2")
    assert "error" not in desk.reply(**job())
    worker.stop()


def test_offloaded_upscaler_comes_back_with_its_positions(desk):
    """Some of its buffers are in no file."""
    [expected] = run(desk, job(upscale=2))
    loaded = desk.worker.engine.loader.load("sdxl-tiny", Quality.DEFAULT).result().loaded
    weights = OffloadableWeights(loaded.extras[NAME].module, loaded.device)
    weights.offload()
    assert all(buffer.untyped_storage().nbytes() == 0 for buffer in weights.module.buffers())
    weights.onload()
    assert np.array_equal(run(desk, job(upscale=2))[0], expected)


# --- tiles ----------------------------------------------------------------------------------------


def images_by(module, tile_px, on_step=lambda step: None, width=128, height=128):
    """The image of a job as a runner with such tiles upscales it."""
    model = loading.load(
        "sdxl-tiny", loading.shipped("sdxl-tiny"), Precision.FLOAT32, torch.device("cpu")
    )
    model.extras["upscaler"] = LoadedExtra(
        module=module, key=extra_key("upscaler", Precision.FLOAT32)
    )
    runner = ModelRunner(
        Placement(make_plan((), None)),
        ConditionCache(0),
        stages={StageName.UPSCALE: UpscaleStage(tile_px)},
    )
    request = model.spec.default_request(
        num_inference_steps=2,
        width=width,
        height=height,
        upscaler=UpscalerOptions(name="upscaler", scale=module.config.upscale),
    )
    item = BatchItem(request=request, seeds=(0,))
    [result] = runner.execute(model, [item], on_step)
    assert isinstance(result, ItemResult)
    raw = result.images[0].pixels
    return np.frombuffer(raw.pixels, np.uint8).reshape(raw.height, raw.width, 3)


def difference_of_tiles(module, tile_px, **size):
    """The largest and the mean difference of levels to the image that is upscaled as a whole."""
    tiled, whole = (images_by(module, each, **size) for each in (tile_px, 1024))
    differences = np.abs(tiled.astype(int) - whole)
    print(f"\nlargest {differences.max()}, mean {differences.mean():.4f}")
    return differences.max(), differences.mean()


@pytest.mark.parametrize(("tile_px", "width", "height"), [(96, 128, 128), (72, 96, 64)])
def test_tiled_image_is_the_whole_one(stock, tile_px, width, height):
    largest, _ = difference_of_tiles(stock, tile_px, width=width, height=height)
    assert largest <= 1


@pytest.mark.acceptance
@pytest.mark.parametrize("scale", [2, 4])
def test_tiled_image_is_the_whole_one_in_the_published_layout(scale):
    torch.manual_seed(scale)
    module = Swin2SRForImageSuperResolution(Swin2SRConfig(upscale=scale)).eval()
    largest, mean = difference_of_tiles(module, 96, width=128, height=64)
    assert largest <= 4
    assert mean <= 0.1


def test_job_ends_between_two_tiles(stock):
    seen = []

    def on_step(step):
        seen.append(step)
        if len(seen) == 4:
            raise Cancelled

    with pytest.raises(Cancelled):
        images_by(stock, 96, on_step)
    assert seen == [1, 2, 2, 2]


def test_numbers_that_are_none_fail_the_job_that_has_them(desk):
    loaded = desk.worker.engine.loader.load("sdxl-tiny", Quality.DEFAULT).result().loaded
    run(desk, job(upscale=2))
    module = loaded.extras[NAME].module
    mean = module.swin2sr.mean.clone()
    try:
        module.swin2sr.mean.fill_(float("nan"))
        reply = desk.reply(**job(upscale=2))
    finally:
        module.swin2sr.mean.copy_(mean)
    assert reply["error"].startswith(f"numerical_fault: {NAME} produced NaN")
