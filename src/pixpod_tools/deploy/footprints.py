"""What a set of models needs of a GPU and of a disk; what models take, the worker's table says."""

import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import resources
from typing import Any

from pixpod.catalog import ModelSpec
from pixpod.engine.memory.footprints import GIB, NoFootprint
from pixpod.engine.memory.footprints import Footprints as DeviceFootprints
from pixpod.families import Precision
from pixpod_tools.deploy.errors import InvalidConfiguration

DISK_STEP_GB = 5


class Mode(StrEnum):
    """Where the endpoint's weights come from."""

    BAKED = "baked"
    CACHED_MODEL = "cached-model"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model of the catalog in the precision in which a GPU runs it.

    `t5` and `adaln` matter for FLUX in float8_dynamic only.
    """

    spec: ModelSpec
    precision: Precision
    t5: Precision = Precision.BFLOAT16
    adaln: Precision = Precision.FLOAT8_DYNAMIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Of one worker that keeps all its models resident. `files_gb` counts 10^9 bytes."""

    device_gib: float
    files_gb: float
    float8: bool

    def __str__(self) -> str:
        return f"{self.device_gib:.1f} GiB" + (" and FP8" if self.float8 else "")


class Footprints:
    """Figures for whole endpoints; `footprints.toml` has what a disk holds beside weights."""

    def __init__(self) -> None:
        text = resources.files("pixpod_tools.deploy").joinpath("footprints.toml").read_text("utf-8")
        table: dict[str, Any] = tomllib.loads(text)  # TOML is untyped
        self._software_gb: float = table["software_gb"]
        self._scratch_gb: float = table["scratch_gb"]
        self._of_device = DeviceFootprints()

    def need(self, models: Iterable[ServedModel]) -> Need:
        """All weights stay on the device, and the hungriest model draws its largest image.

        Raises InvalidConfiguration for a model in a precision without figures.
        """
        served = tuple(models)
        weights_bytes = sum(map(self._weights_bytes, served))
        working_bytes = max(map(self._working_bytes, served), default=0)
        return Need(
            device_gib=(self._of_device.overhead_bytes + weights_bytes + working_bytes) / GIB,
            files_gb=weights_bytes / 1e9,
            float8=any(model.precision is Precision.FLOAT8_DYNAMIC for model in served),
        )

    def disk_gb(self, mode: Mode, files_gb: float) -> int:
        """The image counts, as it lies on the container disk; so does a volume's local copy."""
        weights = 0.0 if mode is Mode.CACHED_MODEL else files_gb
        whole = self._software_gb + self._scratch_gb + weights
        return math.ceil(whole / DISK_STEP_GB) * DISK_STEP_GB

    def _weights_bytes(self, model: ServedModel) -> int:
        held = QuantizationPlan(precision=model.precision, adaln=model.adaln)
        if model.precision is Precision.FLOAT8_DYNAMIC:
            held = replace(held, t5=model.t5)
        try:
            return sum(self._of_device.known_bytes(model.spec, held).values())
        except NoFootprint as exc:
            raise InvalidConfiguration(
                f"precision of {model.spec.name}",
                str(model.precision),
                f"one with known needs ({exc}), or gpu_pools and container_disk_gb set by you",
            ) from exc

    def _working_bytes(self, model: ServedModel) -> int:
        """One image of as many pixels as the model serves, whatever their shape."""
        largest = (model.spec.limits.max_pixels, 1)
        return self._of_device.working_bytes(model.spec.family, largest, 1)
