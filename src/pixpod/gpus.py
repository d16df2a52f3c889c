"""GPUs: classes with the number formats and kernels that are fast on them, and models by name.

The data is in `gpus.toml`. Plans can be made and hosts be checked without torch.
"""

import re
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from pydantic import TypeAdapter

from pixpod.errors import DeviceUnavailable
from pixpod.families import Precision

Capability = tuple[int, int]
"""Compute capability, major and minor, as the driver and torch report it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuClass:
    """GPUs of one compute capability.

    `compiled` and `eager` are the precisions of a FLUX denoiser with 16-bit weights.
    `float8_since` is the first torch whose row-wise FP8 works there, None for a class without
    FP8. `attention` is a backend of diffusers. `cautions` are warnings for replies.
    """

    name: str
    capability: Capability
    attention: str
    compiled: Precision
    eager: Precision
    source: str
    float8_since: tuple[int, int] | None = None
    cautions: tuple[str, ...] = ()

    def has_float8(self, torch_version: str) -> bool:
        """Return whether row-wise FP8 works there with this torch, e.g. `2.13.0+cu130`."""
        major, minor = torch_version.split(".")[:2]
        return self.float8_since is not None and (int(major), int(minor)) >= self.float8_since


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A model of GPU. `memory_gib` is as its driver shows it; None for figures that are not known.

    Prices are US dollars per second of a serverless worker; peaks are dense TFLOP/s.
    """

    name: str
    capability: Capability
    memory_gib: float
    usd_per_second: float | None = None
    bfloat16_tflops: float | None = None
    float8_tflops: float | None = None


@cache  # each reply has the price of its GPU
def find_gpu(name: str) -> Gpu | None:
    """Return the GPU that is meant by `4090`, `RTX 4090` or `NVIDIA GeForce RTX 4090`.

    A name of the table must occur as whole words, or the other way round, whatever the case:
    `L40` is no L40S, `A40` no A4000 and `H200` no GH200. None if there is none.
    """
    gpus = load_gpus()
    named = [gpu for gpu in gpus if _occurs(gpu.name, name)]
    if named:
        return max(named, key=lambda gpu: len(gpu.name))
    return next((gpu for gpu in gpus if name.strip() and _occurs(name.strip(), gpu.name)), None)


def find_gpu_class(capability: Capability) -> GpuClass:
    """Return the class of this capability, else the nearest older class, with a caution.

    Raises DeviceUnavailable for a GPU that is older than all classes.
    """
    classes, wanted = load_gpu_classes(), _dotted(capability)
    not_newer = [each for each in classes if each.capability <= capability]
    if not not_newer:
        oldest = _dotted(classes[0].capability)
        raise DeviceUnavailable(
            f"compute capability of the GPU: expected {oldest} or higher, got {wanted}"
        )
    found = not_newer[-1]
    if found.capability == capability:
        return found
    caution = (
        f"compute capability {wanted} is not in the table of GPUs: treated as {found.name}, "
        f"{_dotted(found.capability)}"
    )
    return replace(found, capability=capability, cautions=(*found.cautions, caution))


_CLASSES = TypeAdapter(tuple[GpuClass, ...])
_GPUS = TypeAdapter(tuple[Gpu, ...])


@cache
def load_gpu_classes() -> tuple[GpuClass, ...]:
    """Return all classes, the oldest first."""
    return tuple(
        sorted(_CLASSES.validate_python(_table()["classes"]), key=lambda each: each.capability)
    )


@cache
def load_gpus() -> tuple[Gpu, ...]:
    return _GPUS.validate_python(_table()["gpus"])


@cache
def price_basis() -> str:
    """Return source and date of the prices."""
    table = _table()
    return f"{table['price_source']} {table['price_date']}"


def _table() -> dict[str, Any]:
    """Read the table. Any: TOML is untyped."""
    return tomllib.loads(
        resources.files("pixpod").joinpath("gpus.toml").read_text(encoding="utf-8")
    )


def _occurs(name: str, text: str) -> bool:
    pattern = rf"(?<![a-z0-9]){re.escape(name.casefold())}(?![a-z0-9])"
    return re.search(pattern, text.casefold()) is not None


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"
