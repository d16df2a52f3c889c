"""ControlNets of the tiny models, through the whole worker: shapes come from control images."""

import numpy as np
import pytest
import torch
from support import loading
from support.control_images import as_png, cases, images_of, largest_difference
from support.tiny_models import Desk, build_tiny_worker

from pixpod.families import Precision
from pixpod.testing.random_loras import random_lora
from pixpod_tools.tiny.control_scores import overlap, score_controls

FEW, MANY = 8, 40
MODELS = ("sdxl-tiny", "sd15-tiny", "flux-tiny")


@pytest.fixture(scope="module")
def lora_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def desk(tmp_path_factory, lora_dir):
    for model, precision in (("sdxl-tiny", Precision.FLOAT32), ("flux-tiny", Precision.BFLOAT16)):
        loaded = loading.load(model, loading.shipped(model), precision, torch.device("cpu"))
        random_lora(loaded, lora_dir, 1).rename(lora_dir / f"{model}-style.safetensors")
    worker = build_tiny_worker(tmp_path_factory.mktemp("out"), PIXPOD_LORA_DIR=str(lora_dir))
    worker.start()
    yield Desk(worker)
    worker.stop()


def run(desk, *jobs):
    return images_of(desk.replies(jobs))


def scores_of(desk, model, type, count):
    chosen = cases(count)
    images = run(desk, *[case.job(model, case.control(type)) for case in chosen])
    found = score_controls(images, [case.given for case in chosen], [case.scene for case in chosen])
    print(f"\n{model} {type}, {count} cases: {found}")
    return found


def test_8_shapes_are_where_the_edges_are(desk):
    found = scores_of(desk, "sdxl-tiny", "canny", FEW)
    assert found.overlap >= 0.70
    assert found.shape >= 0.75
    assert found.position >= 0.85
    assert found.colours >= 0.85  # one of eight is 12 %


@pytest.mark.acceptance
def test_40_shapes_are_where_the_edges_are(desk):
    found = scores_of(desk, "sdxl-tiny", "canny", MANY)
    assert found.overlap >= 0.70
    assert found.shape >= 0.75
    assert found.position >= 0.85
    assert found.colours >= 0.90


@pytest.mark.parametrize("model", MODELS)
def test_control_without_weight_changes_nothing(desk, model):
    few = cases(3)
    plain = run(desk, *[case.job(model) for case in few])
    weightless = run(desk, *[case.job(model, case.control(scale=0)) for case in few])
    assert largest_difference(plain, weightless) <= 1


@pytest.mark.parametrize("model", MODELS)
def test_plain_image_is_the_same_after_controlled_ones(desk, model):
    [case] = cases(1)
    [before] = run(desk, case.job(model))
    run(desk, case.job(model, case.control()))
    [after] = run(desk, case.job(model))
    assert np.array_equal(before, after)


@pytest.mark.parametrize("model", ["sdxl-tiny", "sd15-tiny"])
def test_image_does_not_depend_on_the_jobs_it_shares_a_batch_with(desk, model):
    assert largest_batch_difference(desk, model) <= 1


def test_float8_enlarges_the_last_bits_that_a_batch_changes(desk):
    """The net runs in bfloat16, whose last bits depend on the size of a batch."""
    assert largest_batch_difference(desk, "flux-tiny") <= 16


def test_image_of_flux_does_not_depend_on_its_batch_in_float32(tmp_path):
    worker = build_tiny_worker(tmp_path, PIXPOD_PRECISION="float32")
    worker.start()
    assert largest_batch_difference(Desk(worker), "flux-tiny") <= 1
    worker.stop()


def largest_batch_difference(desk, model):
    jobs = [case.job(model, case.control()) for case in cases(3)]
    together = run(desk, *jobs)
    alone = [run(desk, {**job, "deterministic": True})[0] for job in jobs]
    return largest_difference(together, alone)


def test_jobs_with_and_without_controls_run_side_by_side(desk):
    few = cases(2)
    controlled = [case.job("sdxl-tiny", case.control()) for case in few]
    plain = [case.job("sdxl-tiny") for case in few]
    mixed = run(desk, *controlled, *plain)
    assert largest_difference(mixed[:2], run(desk, *controlled)) <= 1
    assert largest_difference(mixed[2:], run(desk, *plain)) <= 1


def test_two_nets_do_what_both_ask(desk):
    """At half its strength a net follows the shape less well than both do together."""
    few = cases(4)
    given = [case.given for case in few]

    def mean_overlap(*types):
        jobs = [
            case.job("sdxl-tiny", *[case.control(type, scale=0.5) for type in types])
            for case in few
        ]
        return np.mean([overlap(*pair) for pair in zip(run(desk, *jobs), given, strict=True)])

    both = mean_overlap("canny", "depth")
    assert both >= 0.8
    assert both > max(mean_overlap("canny"), mean_overlap("depth"))


def test_control_ends_with_its_range(desk):
    [case] = cases(1)
    whole, part, none = (
        run(desk, case.job("sdxl-tiny", *controls))[0]
        for controls in (
            [case.control()],
            [case.control(start=0.0, end=0.25)],
            [],
        )
    )
    assert not np.array_equal(whole, part)
    assert not np.array_equal(part, none)


@pytest.mark.parametrize("model", MODELS)
def test_control_image_of_another_shape_is_cropped_to_the_models_size(desk, model):
    [case] = cases(1)
    wide = np.pad(case.drawn(), ((0, 0), (32, 32), (0, 0)))
    control = {**case.control(), "image": as_png(wide)}
    cropped, exact = run(desk, case.job(model, control), case.job(model, case.control()))
    assert cropped.shape == (64, 64, 3)
    assert largest_difference([cropped], [exact]) <= 1


@pytest.mark.parametrize("model", MODELS)
def test_image_and_mask_go_with_a_control(desk, model):
    """The images to begin with show other shapes than the control images."""
    few = cases(4)
    sources = [few[index - 1].given for index in range(len(few))]
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255

    def jobs(has_control, **given):
        return [
            case.job(
                model,
                *([case.control()] if has_control else []),
                image=as_png(source),
                strength=0.9,
                **given,
            )
            for case, source in zip(few, sources, strict=True)
        ]

    started, plain = (
        np.mean([overlap(image, case.given) for image, case in zip(images, few, strict=True)])
        for images in (run(desk, *jobs(has_control=True)), run(desk, *jobs(has_control=False)))
    )
    assert started > plain + 0.1
    for image, source in zip(
        run(desk, *jobs(has_control=True, mask=as_png(mask))), sources, strict=True
    ):
        assert np.array_equal(image[:, :32], source[:, :32])
        assert not np.array_equal(image[:, 32:], source[:, 32:])


@pytest.mark.parametrize(("model", "max_levels"), [("sdxl-tiny", 1), ("flux-tiny", 16)])
def test_lora_goes_with_a_control(desk, model, max_levels):
    few = cases(2)

    def jobs(scale):
        loras = [{"source": f"{model}-style", "scale": scale}]
        return [case.job(model, case.control(), loras=loras) for case in few]

    controlled = run(desk, *[case.job(model, case.control()) for case in few])
    assert largest_difference(run(desk, *jobs(0.0)), controlled) <= max_levels
    assert largest_difference(run(desk, *jobs(3.0)), controlled) > max_levels


def test_bad_control_image_fails_its_own_job_only(desk):
    good, bad = cases(2)
    broken = {**bad.control(), "image": "bm8gaW1hZ2U="}
    missing = {**bad.control(), "type": "pose"}
    replies = desk.replies(
        [
            bad.job("sdxl-tiny", broken),
            good.job("sdxl-tiny", good.control()),
            bad.job("sdxl-tiny", missing),
        ]
    )
    assert replies[0]["error"].startswith("image_refused: ")
    assert "controlnets[0].image" in replies[0]["error"]
    assert replies[2]["error"].startswith("invalid_input: ")
    images_of([replies[1]])


def test_describe_lists_the_nets_and_their_types(desk):
    described = desk.reply(describe=True)
    models = {model["name"]: model for model in described["models"]}
    assert models["sdxl-tiny"]["control_types"] == ["canny", "depth"]
    assert models["flux-tiny"]["control_types"] == ["canny"]
    nets = {extra["name"]: extra for extra in described["extras"]}
    assert nets["sdxl-depth-tiny"] == {
        "name": "sdxl-depth-tiny",
        "kind": "controlnet",
        "family": "sdxl",
        "licence": "MIT",
        "revision": None,
        "types": ["depth"],
        "models": ["sdxl-tiny"],
    }
