"""Upscaling in payloads: which upscaler a job gets, and how large its images may be."""

from dataclasses import replace

import pytest
from support.factories import CATALOG, OFFER, OFFERED_EXTRAS, make_job, make_settings

from pixpod.bootstrap import build_worker
from pixpod.contract.describe import describe
from pixpod.contract.payload import parse_job
from pixpod.errors import InvalidInput, ResultTooLarge
from pixpod.families import Precision
from pixpod.job import UpscalerOptions
from pixpod.methods import extras_of

X2, X4, TINY = "swin2sr-x2", "swin2sr-x4", "swin2sr-x2-tiny"


def offer(*names, **changes):
    return replace(OFFER, extras={name: OFFERED_EXTRAS[name] for name in names}, **changes)


def problem_of(offered, **fields):
    with pytest.raises(InvalidInput) as caught:
        parse_job(make_job(**fields), offered)
    (problem,) = caught.value.problems
    assert problem.field == "upscale"
    return problem.accepted


def request_of(offered=OFFER, **fields):
    return parse_job(make_job(**fields), offered).request


@pytest.mark.parametrize("model", ["sdxl", "flux-schnell", "sd15", "sdxl-tiny"])
def test_upscaler_fits_models_of_all_families(model):
    request = request_of(model=model, upscale=4)
    assert request.upscaler == UpscalerOptions(name=X4, scale=4)
    assert request.output_size == (4 * request.width, 4 * request.height)
    assert extras_of(CATALOG[model], request) == (X4,)


def test_first_of_several_upscalers_is_used():
    given = {"model": "sdxl-tiny", "upscale": 2}
    assert request_of(offer(X2, TINY), **given).upscaler.name == X2
    assert request_of(offer(TINY, X2), **given).upscaler.name == TINY


def test_job_without_upscale_has_its_models_size():
    request = request_of(upscale=None)
    assert request.upscaler is None
    assert request.output_size == (request.width, request.height)


def test_deployment_without_an_upscaler_refuses():
    assert problem_of(offer(), upscale=2) == "absent: sdxl-tiny has no upscaler here"
    assert problem_of(offer(TINY), upscale=4) == "one of 2: sdxl-tiny has no others here"
    described = describe(offer(X4, TINY))["models"]
    assert {tuple(each["upscales"]) for each in described} == {(2, 4)}


def vast_offer():
    spec = CATALOG["sdxl"]
    limits = replace(spec.limits, max_side_px=4096, max_pixels=2**24)
    return offer(X2, X4, models={"sdxl": replace(spec, limits=limits)})


def test_image_may_have_so_many_pixels():
    given = {"model": "sdxl", "width": 2176, "height": 1024}
    assert request_of(vast_offer(), upscale=2, **given).output_size == (4352, 2048)
    text = problem_of(vast_offer(), upscale=4, **given)
    assert "an image may have 33554432 pixels, and 8704x4096 are 35651584" in text


def check_size(**fields):
    worker = build_worker(
        make_settings(PIXPOD_DEVICE="cpu", PIXPOD_DELIVERY="inline", PIXPOD_OUTPUT_DIR="out")
    )
    job = parse_job(make_job(**fields), vast_offer())
    worker._renderer.check_size(job)
    return worker, job


def test_size_that_an_image_has_chosen_is_checked_before_it_runs():
    worker, job = check_size(model="sdxl", upscale=2, image="aGVsbG8=", output={"format": "jpeg"})
    vast = replace(job, request=replace(job.request, width=4096, height=4096))
    with pytest.raises(ResultTooLarge, match="upscale: an image may have 33554432 pixels"):
        worker._renderer.check_size(vast)


def test_inline_images_are_judged_by_their_upscaled_size():
    small = {"model": "sdxl", "width": 1024, "height": 1024, "num_images": 2}
    check_size(**small)
    with pytest.raises(ResultTooLarge, match="2 inline png images of 2048x2048 may take"):
        check_size(**small, upscale=2)


def test_upscaler_runs_in_float32_beside_any_model():
    for precision in Precision:
        assert OFFERED_EXTRAS[X2].precision_beside(precision) is Precision.FLOAT32
        assert OFFERED_EXTRAS["sdxl-canny-tiny"].precision_beside(precision) is precision
