"""POLICY: when a worker should give way to a fresh one. Numbers only, except for one gauge."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

GIB = 2**30

SETTLING_IMAGES = 20
"""After the first image of each model, until what it holds by then is taken for what it needs:
allocators, caches of prompts and compiled graphs fill with the first few sizes.
"""

GROWTH = 1.25
MARGIN_BYTES = 2 * GIB
"""A worker has grown if it holds a quarter more than when it had settled, and 2 GiB: one more
parked text encoder or a cache that fills up is less, a leak gets there sooner or later.
"""

MemoryGauge = Callable[[], int | None]
"""Bytes in use now; None where they cannot be known."""


def resident_bytes() -> int | None:
    """What this process holds of the host's memory; None off Linux."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Renewal:
    """Watches one worker. `reason` is None until it is due, and stays then."""

    def __init__(self, *, after_images: int, gauges: Mapping[str, MemoryGauge]) -> None:
        """`after_images` is 0 for never; `gauges` by what they measure."""
        self.reason: str | None = None
        self.is_urgent = False
        self._after_images = after_images
        self._gauges = gauges
        self._settled_bytes: dict[str, int] = {}
        self._models: set[str] = set()
        self._num_images = 0
        self._settles_at = 0

    def served(self, model: str, num_images: int) -> None:
        """Count the images of one job, and look at the memory."""
        self._num_images += num_images
        if model not in self._models:
            self._models.add(model)
            self._settles_at = self._num_images + SETTLING_IMAGES
        if 0 < self._after_images <= self._num_images:
            self._due(f"{self._num_images} images were served")
        for memory, gauge in self._gauges.items():
            self._look(memory, gauge())

    def failed(self, code: str) -> None:
        """An error has left the worker in doubt: the next job would run in what is left."""
        self.is_urgent = True
        self._due(code)

    def _look(self, memory: str, used_bytes: int | None) -> None:
        if used_bytes is None:
            return
        settled = self._settled_bytes.get(memory, 0)
        if self._num_images <= self._settles_at:
            self._settled_bytes[memory] = max(settled, used_bytes)
        elif used_bytes > settled * GROWTH + MARGIN_BYTES:
            grown = f"{settled / GIB:.1f} to {used_bytes / GIB:.1f} GiB"
            self._due(f"{memory} memory has grown from {grown}")

    def _due(self, reason: str) -> None:
        self.reason = self.reason or reason
