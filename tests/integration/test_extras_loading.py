"""Extras are read with the models, loaded when a job names them, and fail with a code."""

import json
from dataclasses import replace

import pytest
from support.broken_weights import copy_weights, flip, write_manifest
from support.control_images import cases, images_of, largest_difference
from support.tiny_models import Desk, build_tiny_worker

from pixpod.weights.manifest import read_manifest

MODEL, NET = "sd15-tiny", "sd15-canny-tiny"
WEIGHTS = "diffusion_pytorch_model.safetensors"
CASE = cases(1)[0]
PLAIN = CASE.job(MODEL, num_inference_steps=1)
CONTROLLED = CASE.job(MODEL, CASE.control(), num_inference_steps=1)


@pytest.fixture
def weights(tmp_path):
    return copy_weights(tmp_path / "weights", MODEL, NET)


@pytest.fixture
def start(tmp_path, weights):
    started = []

    def start(**environ):
        environ = {"PIXPOD_WEIGHTS_DIR": str(weights), **environ}
        worker = build_tiny_worker(tmp_path / "out", **environ)
        worker.start()
        started.append(worker)
        return Desk(worker)

    yield start
    for worker in started:
        worker.stop()


def error_of(desk, job):
    return desk.replies([job])[0]["error"]


def test_net_is_loaded_once_when_a_job_names_it(start):
    desk = start()
    images_of(desk.replies([PLAIN]))
    assert NET not in subjects(desk)
    images_of(desk.replies([CONTROLLED, CONTROLLED]))
    images_of(desk.replies([CONTROLLED]))
    assert subjects(desk).count(NET) == 3  # fetch, build, bind


def subjects(desk):
    return [span.subject for span in desk.worker.engine.timeline.spans()]


def test_net_is_read_ahead_behind_the_models(start):
    desk = start(PIXPOD_PRELOAD="true")
    images_of(desk.replies([PLAIN]))
    read = [span.subject for span in desk.worker.engine.loader.reading()]
    assert read[-1] == f"{NET}/{NET}/{WEIGHTS}"


def test_damaged_net_is_a_fault_of_the_host(start, weights):
    flip(weights / NET / WEIGHTS)
    desk = start()
    images_of(desk.replies([PLAIN]))
    assert error_of(desk, CONTROLLED).startswith("weights_unreadable: ")


def test_net_of_another_class_fails_its_own_jobs_only(start, weights):
    """No manifest lists the file, so that its change is no damage."""
    config = weights / NET / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**settings, "_class_name": "T2IAdapter"}), encoding="utf-8")
    model, net = read_manifest(weights).values()
    write_manifest(weights, model, replace(net, files=()))
    desk = start()
    assert "expected a ControlNetModel, got a T2IAdapter" in error_of(desk, CONTROLLED)
    images_of(desk.replies([PLAIN]))


def test_net_whose_licence_was_not_accepted_is_refused(start, tmp_path):
    catalog = tmp_path / "models.toml"
    catalog.write_text(
        f"""
[extras.{NET}]
kind = "controlnet"
family = "sd15"
types = ["canny"]
licence = "terms-1"
licence_must_be_accepted = true
gib_16 = 0.002
""",
        encoding="utf-8",
    )
    desk = start(PIXPOD_CATALOG=str(catalog))
    assert error_of(desk, CONTROLLED).startswith("licence_not_accepted: ")
    accepting = start(PIXPOD_CATALOG=str(catalog), PIXPOD_ACCEPT_LICENCES="terms-1")
    images_of(accepting.replies([CONTROLLED]))


def test_net_comes_and_goes_with_little_memory(start):
    """The limit has room for each stage, but not for all components at once."""
    roomy = images_of(start().replies([CONTROLLED]))
    desk = start(PIXPOD_MEMORY_LIMIT_GB="1.516")
    for _ in range(2):
        replies = desk.replies([CONTROLLED])
        assert largest_difference(images_of(replies), roomy) == 0
        assert replies[0]["timings_ms"]["onload"] > 0


def test_net_that_never_fits_beside_its_model_is_refused_at_boot(start):
    desk = start(PIXPOD_MEMORY_LIMIT_GB="1.512")
    assert f" with {NET} needs " in error_of(desk, PLAIN)
