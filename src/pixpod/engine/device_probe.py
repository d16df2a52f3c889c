"""Finds the system's devices in milliseconds, long before torch is imported.

Standard library only. Sources: the CUDA driver API's `cuInit`, `cuDeviceGetCount`,
`cuDriverGetVersion`, `cuDeviceGet`, `cuDeviceGetAttribute` and `cuDeviceTotalMem`; its guide to
minor version compatibility.
"""

import ctypes
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pixpod.errors import DeviceUnavailable

DRIVER = "libcuda.so.1"
"""The library that the driver package installs and container runtimes mount."""


CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedGpu:
    """The first GPU, which torch uses by default."""

    capability: tuple[int, int]
    memory_bytes: int


def probe_gpu(built_for: int | None, load: Callable[[str], Any] = ctypes.CDLL) -> ProbedGpu:
    """Find the first GPU. Raises DeviceUnavailable unless the driver can be started, has a GPU,
    describes it, and runs code for CUDA's major version `built_for`; None is not checked.

    `load` opens a shared library, and raises OSError. Any: a library's functions have no types.
    """
    try:
        driver = load(DRIVER)
    except OSError as exc:
        raise DeviceUnavailable(f"no CUDA driver on this host: {DRIVER} cannot be loaded") from exc
    status = driver.cuInit(0)
    if status:
        raise DeviceUnavailable(f"the CUDA driver of this host cannot start: cuInit gave {status}")
    count = ctypes.c_int(0)
    status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status or count.value < 1:
        raise DeviceUnavailable(f"the CUDA driver of this host has no GPU (status {status})")
    version = ctypes.c_int(0)
    status = driver.cuDriverGetVersion(ctypes.byref(version))
    major, minor = version.value // 1000, version.value % 1000 // 10
    if built_for and (status or major < built_for):
        raise DeviceUnavailable(
            f"the CUDA driver of this host is too old: it is for CUDA {major}.{minor}, and torch "
            f"needs {built_for}.0 or higher"
        )
    return _describe_first(driver)


def _describe_first(driver: ctypes.CDLL) -> ProbedGpu:
    gpu = ctypes.c_int(0)
    numbers = {which: ctypes.c_int(0) for which in (CAPABILITY_MAJOR, CAPABILITY_MINOR)}
    memory_bytes = ctypes.c_size_t(0)
    status = driver.cuDeviceGet(ctypes.byref(gpu), 0)
    for which, number in numbers.items():
        status = status or driver.cuDeviceGetAttribute(ctypes.byref(number), which, gpu)
    status = status or driver.cuDeviceTotalMem_v2(ctypes.byref(memory_bytes), gpu)
    if status:
        raise DeviceUnavailable(f"the CUDA driver of this host gave status {status} for its GPU")
    major, minor = (number.value for number in numbers.values())
    return ProbedGpu(capability=(major, minor), memory_bytes=memory_bytes.value)


def processor_name() -> str | None:
    """Return the processor's name as Linux has it, or None."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^model name\s*: *(.+?) *$", text, re.MULTILINE)
    return found and found[1]


def cuda_of_torch() -> int | None:
    """Return the major version of CUDA that the installed torch was built for, without importing
    torch; None for a torch without CUDA.
    """
    cuda = getattr(_version_module(), "cuda", None)
    return int(cuda.partition(".")[0]) if cuda else None


def version_of_torch() -> str | None:
    """Return the version of the installed torch, e.g. `2.13.0+cu130`, without importing it."""
    return getattr(_version_module(), "__version__", None)


def _version_module() -> ModuleType | None:
    found = importlib.util.find_spec("torch")
    folders = found.submodule_search_locations if found else None
    if not folders:
        return None
    spec = importlib.util.spec_from_file_location("torch_version", Path(folders[0]) / "version.py")
    if spec is None or spec.loader is None:
        return None
    version = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(version)
    return version
