"""Asks the CUDA driver for its cards, in milliseconds and long before torch is there.

Standard library only. Sources: the CUDA driver API's `cuInit` and `cuDeviceGetCount`.
"""

import ctypes

from pixpod.errors import DeviceUnavailable

DRIVER = "libcuda.so.1"
"""What the driver package installs, and container runtimes mount."""


def check_cards() -> None:
    """Raises DeviceUnavailable unless the driver can be started and has a card."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as exc:
        raise DeviceUnavailable(f"no CUDA driver on this host: {DRIVER} cannot be loaded") from exc
    status = driver.cuInit(0)
    if status:
        raise DeviceUnavailable(f"the CUDA driver of this host cannot start: cuInit gave {status}")
    count = ctypes.c_int(0)
    status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status or count.value < 1:
        raise DeviceUnavailable(f"the CUDA driver of this host has no card (status {status})")
