"""Control images that are made of given ones: edges by kornia, depth by Depth Anything."""

import asyncio
import base64
import io
import threading
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from support.control_images import as_png, cases, images_of, largest_difference
from support.estimators import NAME, SIZE_PX, estimator_deployment
from support.tiny_models import Desk, build_tiny_worker, to_pixels
from transformers import (
    DepthAnythingForDepthEstimation,
    DepthEstimationPipeline,
    DPTImageProcessorPil,
)

from pixpod.inputs import fitting
from pixpod_tools.tiny.control_scores import overlap
from pixpod_tools.tiny.scenes import Colour, Scene, Shape, draw

CASES = cases(4)
CASE = CASES[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("estimators")


@pytest.fixture(scope="module")
def deployment(folder):
    return estimator_deployment(folder)


@pytest.fixture(scope="module")
def desk(folder, deployment):
    worker = build_tiny_worker(folder / "out", **deployment)
    worker.start()
    yield Desk(worker)
    worker.stop()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """All tiny models, without an estimator."""
    worker = build_tiny_worker(tmp_path_factory.mktemp("out"))
    worker.start()
    yield Desk(worker)
    worker.stop()


def as_photo(case):
    """The scene under uneven light and with noise."""
    light = np.linspace(0.92, 1.0, 64)[None, :, None]
    noise = np.random.default_rng(case.seed).normal(0, 1.5, (64, 64, 3))
    return np.clip(np.rint(case.given * light + noise), 0, 255).astype(np.uint8)


def made(image, type="canny", **options):
    return {"type": type, "image": as_png(image), "preprocess": True, **options}


def job(case=CASE, model="sdxl-tiny", image=None, type="canny", **given):
    control = made(case.given if image is None else image, type)
    return case.job(model, control, num_inference_steps=4, **given)


def controls_of(reply):
    assert "error" not in reply, reply["error"]
    return [to_pixels(control) for control in reply["controls"]]


ASKED = {"output": {"controls": True}}


# --- edges ----------------------------------------------------------------------------------------


def test_edges_of_a_batch_are_those_of_kornia_alone(shipped):
    replies = shipped.replies([job(case, **ASKED) for case in CASES])
    for case, reply in zip(CASES, replies, strict=True):
        (control,) = controls_of(reply)
        assert np.array_equal(control, case.drawn())
        assert reply["controls"][0]["index"] == 0
        assert "seed" not in reply["controls"][0]


def check_shapes(desk, count):
    chosen = cases(count)
    jobs = [case.job("sdxl-tiny", made(as_photo(case))) for case in chosen]
    pairs = zip(images_of(desk.replies(jobs)), chosen, strict=True)
    found = np.mean([overlap(image, case.given) for image, case in pairs])
    print(f"\n{count} cases: mean IoU {found:.3f}")
    assert found >= 0.70


def test_6_shapes_are_those_of_the_given_images(shipped):
    check_shapes(shipped, 6)


@pytest.mark.acceptance
def test_40_shapes_are_those_of_the_given_images(shipped):
    check_shapes(shipped, 40)


@pytest.mark.parametrize("model", ["sdxl-tiny", "flux-tiny"])
def test_image_is_that_of_the_ready_control_image(shipped, model):
    ready = CASE.job(model, CASE.control(), num_inference_steps=4)
    images = images_of(shipped.replies([job(model=model)]) + shipped.replies([ready]))
    assert largest_difference(images[:1], images[1:]) == 0


def test_edges_are_found_once_for_an_image(shipped):
    image = as_photo(CASES[2])[::-1]
    first, second = (shipped.reply(**job(image=image, seed=seed)) for seed in (1, 2))
    assert first["timings_ms"]["preprocess"] > 0
    assert "preprocess" not in second["timings_ms"]


def test_image_without_edges_is_warned_of(shipped):
    """Both colours are equally bright."""
    scene = Scene(colour=Colour.PURPLE, shape=Shape.CIRCLE, background=Colour.GREEN)
    reply = shipped.reply(**job(image=draw(scene), **ASKED))
    assert not controls_of(reply)[0].any()
    (warning,) = reply["warnings"]
    assert warning.startswith("controlnets[0]: nothing was found in the image")


# --- depth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64)])
def test_depth_is_that_of_transformers_own_pipeline(desk, deployment, width, height):
    image = np.asarray(Image.fromarray(as_photo(CASE)).resize((width, height)))
    size = {"width": width, "height": height}
    (control,) = controls_of(desk.reply(**job(image=image, type="depth", **size, **ASKED)))
    processor = DPTImageProcessorPil(
        size={"width": SIZE_PX, "height": SIZE_PX},
        ensure_multiple_of=14,
        keep_aspect_ratio=True,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    module = DepthAnythingForDepthEstimation.from_pretrained(
        f"{deployment['PIXPOD_WEIGHTS_DIR']}/{NAME}"
    )
    pipeline = DepthEstimationPipeline(model=module, image_processor=processor)
    expected = np.asarray(pipeline(Image.fromarray(image))["depth"])
    assert expected.std() > 10
    assert largest_difference([control[..., 0]], [expected]) <= 1


def test_each_control_has_its_own_preprocessor(desk):
    controls = [CASES[1].control("canny"), made(CASE.given, "depth"), made(CASE.given)]
    reply = desk.reply(**CASE.job("sdxl-tiny", *controls, num_inference_steps=2, **ASKED))
    assert [control["index"] for control in reply["controls"]] == [1, 2]
    assert np.array_equal(controls_of(reply)[1], CASE.drawn())


def test_scaling_for_the_estimator_does_not_keep_other_jobs_waiting(desk):
    """The first job is scaled on the CPU until the second, which begins later, has its image."""
    began, may_end = threading.Event(), threading.Event()
    scale = fitting.fit_estimator_image

    def scale_slowly(*arguments):
        began.set()
        assert may_end.wait(60), "the second job has waited for the first one's scaling"
        return scale(*arguments)

    async def run():
        slow = asyncio.create_task(
            desk.worker.handle({"id": "slow", "input": job(type="depth", seed=8)})
        )
        await asyncio.to_thread(began.wait, 60)
        plain = CASE.job("sdxl-tiny", num_inference_steps=2)
        quick = await desk.worker.handle({"id": "quick", "input": plain})
        assert not slow.done()
        may_end.set()
        return quick, await slow

    with mock.patch.object(fitting, "fit_estimator_image", scale_slowly):
        quick, slow = asyncio.run(run())
    images_of([quick, slow])
    assert quick["timings_ms"]["queue"] < slow["timings_ms"]["fetch"]


def test_describe_lists_what_can_be_made(desk, shipped):
    models = {each["name"]: each for each in desk.reply(describe=True)["models"]}
    assert models["sdxl-tiny"]["preprocessed_types"] == ["canny", "depth"]
    models = {each["name"]: each for each in shipped.reply(describe=True)["models"]}
    assert models["sdxl-tiny"]["preprocessed_types"] == ["canny"]


# --- files ----------------------------------------------------------------------------------------


def test_control_images_are_encoded_as_the_images_but_neither_upscaled_nor_marked(shipped):
    output = {"controls": True, "format": "webp", "quality": 100}
    reply = shipped.reply(**job(num_images=2, upscale=2, output=output))
    assert [image["width"] for image in reply["images"]] == [128, 128]
    (control,) = reply["controls"]
    assert (control["width"], control["content_type"]) == (64, "image/webp")
    image, file = (
        Image.open(io.BytesIO(base64.b64decode(each["data"])))
        for each in (reply["images"][0], control)
    )
    assert "xmp" in image.info and "exif" in image.info
    assert "xmp" not in file.info and "exif" not in file.info


def test_control_images_are_not_returned_unless_asked_for(shipped):
    assert shipped.reply(**job())["controls"] == []
