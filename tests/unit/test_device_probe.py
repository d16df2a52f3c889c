"""What the CUDA driver may answer. A table of functions stands in for the library."""

import ctypes
import sys
from dataclasses import dataclass

import pytest

from pixpod.engine.device_probe import (
    DRIVER,
    ProbedGpu,
    cuda_of_torch,
    probe_gpu,
    version_of_torch,
)
from pixpod.errors import DeviceUnavailable


@dataclass(kw_only=True)
class Driver:
    """What a driver's functions give; statuses other than 0 are errors."""

    init: int = 0
    cards: int = 1
    count_status: int = 0
    version: int = 13000
    version_status: int = 0
    capability: tuple[int, int] = (9, 0)
    memory_bytes: int = 85_000_000_000
    faulty: str = ""

    def cuInit(self, flags):
        assert flags == 0
        return self.init

    def cuDeviceGetCount(self, count):
        count._obj.value = self.cards
        return self.count_status

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return self.version_status

    def cuDeviceGet(self, card, number):
        assert number == 0
        card._obj.value = 7
        return self._status("cuDeviceGet")

    def cuDeviceGetAttribute(self, value, attribute, card):
        assert card.value == 7
        value._obj.value = dict(zip((75, 76), self.capability, strict=True))[attribute]
        return self._status(f"attribute {attribute}")

    def cuDeviceTotalMem_v2(self, memory_bytes, card):
        assert card.value == 7
        memory_bytes._obj.value = self.memory_bytes
        return self._status("cuDeviceTotalMem")

    def _status(self, function):
        return 999 if function == self.faulty else 0


def check(driver, built_for=13):
    def load(name):
        assert name == DRIVER
        return driver

    return probe_gpu(built_for, load)


@pytest.mark.parametrize(
    ("driver", "built_for"),
    [
        (Driver(), 13),
        (Driver(cards=8, version=13020), 13),
        (Driver(version=12040), 12),
        (Driver(version=13000), 12),
        (Driver(version=11080), None),
    ],
)
def test_driver_that_runs_what_torch_was_built_for_passes(driver, built_for):
    check(driver, built_for)


@pytest.mark.parametrize("status", [3, 100, 803, 999])
def test_driver_that_cannot_start_is_named_with_its_status(status):
    with pytest.raises(DeviceUnavailable, match=f"cannot start: cuInit gave {status}$"):
        check(Driver(init=status))


@pytest.mark.parametrize("driver", [Driver(cards=0), Driver(cards=1, count_status=100)])
def test_driver_without_a_gpu_is_an_error(driver):
    with pytest.raises(DeviceUnavailable, match=f"has no GPU .status {driver.count_status}.$"):
        check(driver)


def test_driver_older_than_torch_is_named_with_both_versions():
    with pytest.raises(DeviceUnavailable, match=r"for CUDA 12\.4, and torch needs 13\.0 or"):
        check(Driver(version=12040))


def test_driver_that_does_not_tell_its_version_is_too_old():
    with pytest.raises(DeviceUnavailable, match="too old"):
        check(Driver(version=0, version_status=1))


def test_host_without_a_driver_is_said(tmp_path):
    """The real loader, on a file that is no library."""
    (tmp_path / DRIVER).touch()

    def load(name):
        return ctypes.CDLL(str(tmp_path / name))

    with pytest.raises(DeviceUnavailable, match=f"no CUDA driver on this host: {DRIVER} cannot"):
        probe_gpu(None, load)


@pytest.mark.parametrize(
    ("capability", "memory_bytes"), [((8, 9), 25_250_000_000), ((12, 0), 2**37)]
)
def test_gpu_is_described_beyond_32_bits(capability, memory_bytes):
    driver = Driver(capability=capability, memory_bytes=memory_bytes)
    assert check(driver) == ProbedGpu(capability=capability, memory_bytes=memory_bytes)


@pytest.mark.parametrize(
    "faulty", ["cuDeviceGet", "attribute 75", "attribute 76", "cuDeviceTotalMem"]
)
def test_gpu_that_cannot_be_described_is_an_error(faulty):
    with pytest.raises(DeviceUnavailable, match=r"gave status 999 for its GPU$"):
        check(Driver(faulty=faulty))


def test_version_of_torchs_cuda_is_read_without_importing_torch(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError('imported')")
    version = tmp_path / "torch" / "version.py"
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    for text, expected in (
        ("cuda: str | None = '13.0'", 13),
        ("cuda = '12.8'", 12),
        ("cuda = None", None),
    ):
        version.write_text(f"__version__ = '2.13.{len(text)}'\n{text}\n")
        assert cuda_of_torch() == expected
        assert version_of_torch() == f"2.13.{len(text)}"


def test_machine_without_torch_has_no_version(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    assert cuda_of_torch() is None
    assert version_of_torch() is None
