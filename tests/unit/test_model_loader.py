"""Faults that a booting worker finds, and when it reports them. Nothing here imports torch."""

import gc
import shutil
import sys
import threading
import time
from concurrent.futures import Future

import pytest
from support.broken_weights import flip
from support.weights_directories import CATALOG, WEIGHTS_NAME, add_model

from pixpod.catalog import Catalog
from pixpod.engine.device_probe import ProbedGpu
from pixpod.engine.loading.loader import ModelLoader, gc_disabled
from pixpod.errors import (
    DeviceUnavailable,
    DiskFull,
    InternalError,
    LicenceNotAccepted,
    ModelUnavailable,
    WeightsUnreadable,
)
from pixpod.families import Precision
from pixpod.job import Quality
from pixpod.timeline import BootTimeline
from pixpod.weights.layout import Weights
from pixpod.weights.prefetch import Verify
from pixpod.weights.sources import BakedSource, VolumeSource, WeightsLocator

LIMIT_S = 30
UNET = f"unet/{WEIGHTS_NAME}"


class WithoutTorch(ModelLoader):
    """Loads up to where torch is needed, and fails there with `fault`."""

    fault: Exception = DeviceUnavailable("no device in this test")

    def _prepare(self):
        failed: Future = Future()
        failed.set_exception(self.fault)
        return failed


class Clock:
    """Of a boot. While it is held, no reader begins."""

    def __init__(self):
        self.is_released = threading.Event()
        self.is_released.set()

    def __call__(self):
        assert self.is_released.wait(LIMIT_S)
        return time.perf_counter()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def reported():
    return []


@pytest.fixture
def make_loader(tmp_path, clock, reported):
    made = []

    def make(*names, verify=Verify.CHUNKS, device="cpu", fault=None, requested=None):
        models: Catalog = {name: CATALOG[name] for name in names}
        loader = WithoutTorch(
            models=models,
            locator=WeightsLocator([BakedSource(tmp_path)]),
            device=device,
            requested_precision=lambda model: requested,
            accepted_licences=frozenset(),
            verify=verify,
            timeline=BootTimeline(clock),
            on_host_fault=reported.append,
        )
        if fault:
            loader.fault = fault
        made.append(loader)
        return loader

    yield make
    clock.is_released.set()
    for loader in made:
        loader.stop()


@pytest.fixture
def card(monkeypatch):
    """Stands in for the driver."""

    def make(capability, memory_gib):
        probed = ProbedGpu(capability=capability, memory_bytes=int(memory_gib * 2**30))
        monkeypatch.setattr("pixpod.engine.loading.loader.probe_gpu", lambda built_for: probed)

    return make


def wait_until(condition):
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_sound_host_passes(tmp_path, make_loader):
    for name in ("sd15-tiny", "sdxl-tiny"):
        add_model(tmp_path, name)
    loader = make_loader("sd15-tiny", "sdxl-tiny")
    loader.preload(loader._models)
    loader.check_host()


def test_check_waits_for_the_first_models_files(tmp_path, make_loader, clock):
    add_model(tmp_path, "sd15-tiny")
    loader = make_loader("sd15-tiny")
    clock.is_released.clear()
    loader.preload(["sd15-tiny"])
    checking = threading.Thread(target=loader.check_host)
    checking.start()
    checking.join(0.1)
    assert checking.is_alive(), "files are not read yet"
    clock.is_released.set()
    checking.join(LIMIT_S)
    assert not checking.is_alive()
    assert len(loader.reading()) == 3


def test_worker_whose_disk_is_too_small_for_the_copy_takes_no_job(
    tmp_path, make_loader, monkeypatch
):
    add_model(tmp_path, "sdxl-tiny")
    loader = make_loader("sdxl-tiny")
    loader._locator = WeightsLocator([VolumeSource(tmp_path, tmp_path / "local")])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(DiskFull, match="which has 0 free"):
        loader.check_host()


def test_first_model_stays_the_first_and_a_job_puts_its_own_before(make_loader, tmp_path):
    names = ("sd15-tiny", "sdxl-tiny", "flux-tiny")
    for name in names:
        add_model(tmp_path, name)
    loader = make_loader(*names)
    preferred: list[str] = []
    loader._prefetch.prefer = preferred.append
    loads = loader.preload(names)
    assert preferred == []
    assert len(loads) == 3
    held: Future = Future()
    loader._loads["sdxl-tiny", Quality.DEFAULT] = held
    assert loader.load("sdxl-tiny") is held
    assert preferred == ["sdxl-tiny"]
    held.cancel()


def test_qualities_that_share_a_denoiser_share_a_load(make_loader, tmp_path):
    add_model(tmp_path, "flux-tiny")
    loader = make_loader("flux-tiny")
    held: Future = Future()
    loader._loads["flux-tiny", Quality.DEFAULT] = held
    assert loader.load("flux-tiny") is held
    assert loader.load("flux-tiny", Quality.TURBO) is held
    assert loader.load("flux-tiny", Quality.MAX) is not held
    held.cancel()


@pytest.mark.parametrize(
    ("capability", "memory_gib", "requested"),
    [
        pytest.param((8, 6), 47.0, None, id="float8 is not requested for"),
        pytest.param((8, 9), 23.5, Precision.FLOAT8_DYNAMIC, id="Ada"),
        pytest.param((9, 0), 79.0, Precision.FLOAT8_DYNAMIC, id="Hopper"),
        pytest.param((8, 0), 39.0, Precision.BFLOAT16, id="16-bit"),
    ],
)
def test_gpu_that_runs_the_requested_precision_passes(
    tmp_path, make_loader, card, capability, memory_gib, requested
):
    add_model(tmp_path, "flux-schnell")
    card(capability, memory_gib)
    make_loader("flux-schnell", device="auto", requested=requested).check_host()


@pytest.mark.parametrize(
    ("capability", "part"),
    [
        ((8, 6), r"needs a GPU with row-wise FP8 .* this one is Ampere"),
        ((7, 0), r"expected 7\.5 or higher, got 7\.0"),
    ],
)
def test_gpu_that_cannot_run_the_requested_precision_takes_no_job(
    tmp_path, make_loader, card, capability, part
):
    add_model(tmp_path, "flux-schnell")
    card(capability, 47.0)
    loader = make_loader("flux-schnell", device="auto", requested=Precision.FLOAT8_DYNAMIC)
    with pytest.raises(DeviceUnavailable, match=part):
        loader.check_host()


def test_precision_that_no_gpu_can_run_is_left_to_the_jobs(tmp_path, make_loader, card):
    add_model(tmp_path, "sdxl")
    card((9, 0), 79.0)
    make_loader("sdxl", device="auto", requested=Precision.FLOAT8_DYNAMIC).check_host()


@pytest.mark.parametrize("is_preloaded", [True, False])
def test_file_of_another_size_is_found_behind_a_fault_of_the_deployment(
    tmp_path, make_loader, is_preloaded
):
    for name in ("sd15-tiny", "sdxl-tiny"):
        add_model(tmp_path, name)
    (tmp_path / "sd15-tiny" / UNET).unlink()
    (tmp_path / "sdxl-tiny" / UNET).write_bytes(b"short")
    loader = make_loader("sd15-tiny", "sdxl-tiny")
    if is_preloaded:
        loader.preload(loader._models)
    with pytest.raises(WeightsUnreadable, match=r"sdxl-tiny.*: expected \d+ bytes, got 5"):
        loader.check_host()


def test_faults_of_the_deployment_are_left_to_the_jobs(tmp_path, make_loader, reported):
    for name in ("flux-dev", "sd15-tiny", "sdxl-tiny"):
        add_model(tmp_path, name)
    (tmp_path / "sd15-tiny" / UNET).unlink()
    loader = make_loader("flux-dev", "sd15-tiny", "flux-tiny", "sdxl-tiny")
    refused, missing, absent, _ = loader.preload(loader._models)
    loader.check_host()
    assert isinstance(refused.exception(LIMIT_S), LicenceNotAccepted)
    assert isinstance(missing.exception(LIMIT_S), ModelUnavailable)
    assert isinstance(absent.exception(LIMIT_S), ModelUnavailable)
    wait_until(lambda: reported)
    assert {type(error) for error in reported} == {DeviceUnavailable}


DAMAGED = {
    "weights": UNET,
    "a config": "unet/config.json",
    "the index": "model_index.json",
}


@pytest.mark.parametrize("path", DAMAGED.values(), ids=DAMAGED)
def test_flipped_byte_in_any_file_is_found_before_jobs_are_taken(tmp_path, make_loader, path):
    add_model(tmp_path, "sd15-tiny")
    flip(tmp_path / "sd15-tiny" / path, offset=0)
    loader = make_loader("sd15-tiny")
    loader.preload(["sd15-tiny"])
    with pytest.raises(WeightsUnreadable, match=path):
        loader.check_host()


def test_config_that_is_still_json_is_compared_with_what_was_baked(tmp_path, make_loader):
    add_model(tmp_path, "sd15-tiny")
    config = tmp_path / "sd15-tiny" / "unet" / "config.json"
    config.write_bytes(b"[]")  # as long as the {} that it was
    loader = make_loader("sd15-tiny")
    loader.preload(["sd15-tiny"])
    with pytest.raises(WeightsUnreadable, match=r"config\.json: not what was baked"):
        loader.check_host()
    unchecked = make_loader("sd15-tiny", verify=Verify.SIZES)
    unchecked.preload(["sd15-tiny"])
    unchecked.check_host()


def test_damage_is_reported_by_its_finder_while_nobody_waits(tmp_path, make_loader, reported):
    add_model(tmp_path, "sd15-tiny")
    flip(tmp_path / "sd15-tiny" / UNET)
    loader = make_loader("sd15-tiny")
    loader._read_ahead("sd15-tiny")
    wait_until(lambda: reported)
    (damage,) = reported
    assert isinstance(damage, WeightsUnreadable)
    assert UNET in str(damage)


def test_what_nobody_foresaw_counts_as_the_hosts(tmp_path, make_loader, reported, caplog):
    add_model(tmp_path, "sd15-tiny")
    loader = make_loader("sd15-tiny", fault=AttributeError("of a library"))
    with pytest.raises(AttributeError):
        loader.load("sd15-tiny").result(LIMIT_S)
    wait_until(lambda: reported)
    (error,) = reported
    assert isinstance(error, InternalError)
    assert "of a library" not in str(error)
    assert "of a library" in caplog.text


def test_files_that_were_read_ahead_are_not_checked_again(make_loader, tmp_path, monkeypatch):
    add_model(tmp_path, "sdxl")
    checked: list[Weights] = []
    monkeypatch.setattr("pixpod.engine.loading.loader.check_small_files", checked.append)
    (load,) = make_loader("sdxl").preload(["sdxl"])
    assert isinstance(load.exception(LIMIT_S), DeviceUnavailable)
    assert len(checked) == 1


def test_files_that_nobody_read_ahead_are_checked_when_requested(
    make_loader, tmp_path, monkeypatch
):
    add_model(tmp_path, "sdxl")
    checked: list[Weights] = []
    monkeypatch.setattr("pixpod.engine.loading.loader.check_small_files", checked.append)
    assert isinstance(make_loader("sdxl").load("sdxl").exception(LIMIT_S), DeviceUnavailable)
    assert len(checked) == 1


@pytest.mark.parametrize("has_torch", [False, True])
def test_what_the_first_import_makes_is_never_looked_through_for_garbage(monkeypatch, has_torch):
    """A second engine in one process imports nothing, and what it drops must be found."""
    if has_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    else:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    gc.unfreeze()
    try:
        with gc_disabled():
            assert gc.isenabled() == has_torch
        assert gc.isenabled()
        assert (gc.get_freeze_count() == 0) == has_torch
    finally:
        gc.unfreeze()
