"""Declared stacks of a worker: loaded and warmed up with it, planned for, refused at boot."""

import gc
import logging
import time
from contextlib import contextmanager

import diffusers
import pytest
import torch
from support.control_images import cases, images_of
from support.factories import make_settings
from support.tiny_models import Desk, build_tiny_worker

from pixpod.bootstrap import build_worker
from pixpod.catalog import load_catalog
from pixpod.engine.adapters.side_path import SidePath, can_have_side_path
from pixpod.engine.memory.budget import OVERHEAD_BYTES
from pixpod.engine.memory.needs import extra_bytes, need_of
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.errors import InvalidSettings
from pixpod.extras import load_extras
from pixpod.families import GIB, Precision
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.stacks import parse_stacks
from pixpod.weights.sources import BakedSource
from pixpod_tools.bake.random_cache import find_architecture
from pixpod_tools.boot_report.report import MESSAGE, format_boot, make_boot_report

MODEL, CANNY, DEPTH = "sdxl-tiny", "sdxl-canny-tiny", "sdxl-depth-tiny"
STACK = f"{MODEL}+{CANNY}+loras=16"
CATALOG, EXTRAS = load_catalog(), load_extras()
CASE = cases(1)[0]
WARM_LIMIT_S = 60


def tight_gib(stack):
    """Memory for a model and a stack at once, and for half of the other net."""
    spec, source = CATALOG[MODEL], BakedSource(SOURCE_WEIGHTS_DIR)
    plan = QuantizationPlan(precision=Precision.FLOAT32)
    stacks = parse_stacks([stack], {MODEL: spec}, EXTRAS)
    need = need_of(
        spec, plan, source.find(spec), extras=EXTRAS, stacks=stacks, find_extra=source.find
    )
    depth_bytes = extra_bytes(EXTRAS[DEPTH], plan.precision, source.find(EXTRAS[DEPTH]))
    working = max(stage.working_bytes(1) for stage in need.planned_stages)
    return (sum(need.planned_sizes.values()) + working + OVERHEAD_BYTES + depth_bytes // 2) / GIB


class Boots(logging.Handler):
    """Keeps the boot timelines that a worker logs."""

    def __init__(self):
        super().__init__()
        self.spans = []

    def emit(self, record):
        if record.getMessage() == MESSAGE:
            self.spans.append(record.spans)


@contextmanager
def warm_desk(folder, stack, **environ):
    """A worker before its first job."""
    worker = build_tiny_worker(
        folder, PIXPOD_MODELS=MODEL, PIXPOD_STACKS=stack, PIXPOD_PRELOAD="true", **environ
    )
    worker.start()
    try:
        deadline = time.monotonic() + WARM_LIMIT_S
        while not worker.engine.is_warm:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield Desk(worker)
    finally:
        worker.stop()


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A worker before its first job, and the boot timelines that it has logged."""
    logger, boots = logging.getLogger("pixpod.engine.engine"), Boots()
    logger.addHandler(boots)
    logger.setLevel(logging.INFO)
    with warm_desk(tmp_path_factory.mktemp("out"), STACK, PIXPOD_WARMUP_SIZES="64x64") as desk:
        yield desk, boots
    logger.removeHandler(boots)


def spans_of(desk, phase):
    return [each.subject for each in desk.worker.engine.timeline.spans() if each.phase == phase]


def on_device(desk):
    placement = desk.worker.engine.loader.load(MODEL).result().runner.placement
    return {key.component for key in placement.on_device}


def test_declared_stack_is_ready_before_the_first_job(warm):
    desk, boots = warm
    assert spans_of(desk, "warm").count(STACK) == 1
    assert spans_of(desk, "fetch") == [MODEL, CANNY], "the other net comes when a job names it"
    assert on_device(desk) == {*CATALOG[MODEL].family.component_names, CANNY}
    logged = {(span["phase"], span["subject"]) for span in boots.spans[-1]}
    assert ("warm", STACK) in logged
    report = format_boot(make_boot_report(desk.worker.engine.timeline.spans()))
    assert [line for line in report.splitlines() if line.startswith("warm") and STACK in line]


def test_first_job_with_it_loads_nothing(warm):
    desk, _ = warm
    before = desk.worker.engine.timeline.spans()
    slots = count_side_paths()
    assert slots
    images_of(desk.replies([CASE.job(MODEL, CASE.control(), num_inference_steps=1)]))
    after = [span for span in desk.worker.engine.timeline.spans() if span not in before]
    assert [span.phase for span in after] == ["first_image"]
    assert count_side_paths() == slots


def count_side_paths():
    return sum(issubclass(type(each), SidePath) for each in gc.get_objects())


def test_undeclared_extra_comes_on_demand_and_goes_first(tmp_path):
    stack = f"{MODEL}+{CANNY}"
    planned = {*CATALOG[MODEL].family.component_names, CANNY}
    limits = {"PIXPOD_MEMORY_LIMIT_GB": f"{tight_gib(stack):.6f}"}
    with warm_desk(tmp_path, stack, PIXPOD_EXTRAS=f"{CANNY},{DEPTH}", **limits) as desk:
        assert on_device(desk) == planned
        for _ in range(2):
            replies = desk.replies([CASE.job(MODEL, CASE.control("depth"), num_inference_steps=1)])
            images_of(replies)
            assert replies[0]["timings_ms"]["onload"] > 0
            assert on_device(desk) == planned, "the decoding needed its memory"
        assert spans_of(desk, "fetch").count(DEPTH) == 1


def test_stack_that_does_not_fit_is_refused_with_the_numbers(tmp_path):
    """A worker with its model alone would run."""
    worker = build_tiny_worker(
        tmp_path, PIXPOD_MODELS=MODEL, PIXPOD_STACKS=STACK, PIXPOD_MEMORY_LIMIT_GB="1.55"
    )
    worker.start()
    try:
        error = Desk(worker).reply(**CASE.job(MODEL))["error"]
    finally:
        worker.stop()
    assert error.startswith(f"model_unavailable: {STACK} in float32 needs 1.6")
    assert "LoRAs 0.09, CUDA 1.0), and there are 1.55: choose a GPU with 1.6" in error
    assert "leave loras=16 out of it, which takes 1.5" in error


def test_unknown_part_is_refused_before_anything_starts():
    settings = make_settings(PIXPOD_MODELS=MODEL, PIXPOD_STACKS=f"{MODEL}+sdxl-cany-tiny")
    with pytest.raises(InvalidSettings, match=r"PIXPOD_STACKS: .*did you mean 'sdxl-canny-tiny'"):
        build_worker(settings)


@pytest.mark.parametrize("name", ["flux-dev", "sdxl", "sd15"])
@pytest.mark.parametrize("is_whole", [False, True], ids=["usual", "whole"])
def test_bytes_of_slots_are_those_of_the_layers(name, is_whole):
    architecture = find_architecture(name, None)
    family = architecture.family
    assert family.lora is not None
    denoiser_class = getattr(diffusers, family.component(family.denoiser).class_name)
    with torch.device("meta"):
        denoiser = denoiser_class(**architecture.components[family.denoiser])
    values = sum(
        len(layer.weight) + layer.weight[0].numel()
        for layer_name, layer in denoiser.named_modules()
        if can_have_side_path(layer) and (is_whole or family.lora.is_usual(layer_name))
    )
    planned = family.lora.slot_bytes(family.lora.slots_for(64, is_whole=is_whole))
    assert planned == pytest.approx(64 * 2 * values, rel=0.04)
