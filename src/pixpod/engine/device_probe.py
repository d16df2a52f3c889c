"""Asks the CUDA driver for its cards, in milliseconds and long before torch is there.

Standard library only. Sources: the CUDA driver API's `cuInit`, `cuDeviceGetCount` and
`cuDriverGetVersion`; its guide to minor version compatibility.
"""

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pixpod.errors import DeviceUnavailable

DRIVER = "libcuda.so.1"
"""What the driver package installs, and container runtimes mount."""


def check_cards(built_for: int | None, load: Callable[[str], Any] = ctypes.CDLL) -> None:
    """Raises DeviceUnavailable unless the driver can be started, has a card, and runs what was
    built for CUDA's major version `built_for`; None is not checked.

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
        raise DeviceUnavailable(f"the CUDA driver of this host has no card (status {status})")
    version = ctypes.c_int(0)
    status = driver.cuDriverGetVersion(ctypes.byref(version))
    major, minor = version.value // 1000, version.value % 1000 // 10
    if built_for and (status or major < built_for):
        raise DeviceUnavailable(
            f"the CUDA driver of this host is too old: it is for CUDA {major}.{minor}, and torch "
            f"needs {built_for}.0 or higher"
        )


def cuda_of_torch() -> int | None:
    """The major version of CUDA that the installed torch was built for, without importing it;
    None for a torch without CUDA.
    """
    found = importlib.util.find_spec("torch")
    folders = found.submodule_search_locations if found else None
    if not folders:
        return None
    spec = importlib.util.spec_from_file_location("torch_version", Path(folders[0]) / "version.py")
    if spec is None or spec.loader is None:
        return None
    version = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(version)
    return int(version.cuda.partition(".")[0]) if version.cuda else None
