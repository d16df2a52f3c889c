"""What a set of models needs of a GPU and of a disk; figures in `footprints.toml`."""

import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any

from pixpod.catalog import ModelSpec, Precision
from pixpod_deploy.errors import InvalidConfiguration

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
    """Figures by family and precision."""

    def __init__(self) -> None:
        text = resources.files("pixpod_deploy").joinpath("footprints.toml").read_text("utf-8")
        table = tomllib.loads(text)
        self._overhead_gib: float = table["device_overhead_gib"]
        self._software_gb: float = table["software_gb"]
        self._scratch_gb: float = table["scratch_gb"]
        self._shipped: dict[str, Any] = table["shipped"]
        self._rows: list[dict[str, Any]] = table["footprints"]

    def need(self, models: Iterable[ServedModel]) -> Need:
        """All weights stay on the device, and the hungriest model works.

        Raises InvalidConfiguration for a model in a precision without figures.
        """
        served = tuple(models)
        rows = [self._row(model) for model in served]
        weights = sum(row["weights_gib"] for row in rows)
        working = max((row["working_gib"] for row in rows), default=0.0)
        return Need(
            device_gib=self._overhead_gib + weights + working,
            files_gb=sum(row["files_gb"] for row in rows),
            float8=any(model.precision is Precision.FLOAT8_DYNAMIC for model in served),
        )

    def disk_gb(self, mode: Mode, files_gb: float) -> int:
        """The image counts, as it lies on the container disk; so does a volume's local copy."""
        weights = 0.0 if mode is Mode.CACHED_MODEL else files_gb
        whole = self._software_gb + self._scratch_gb + weights
        return math.ceil(whole / DISK_STEP_GB) * DISK_STEP_GB

    def _row(self, model: ServedModel) -> dict[str, Any]:
        if model.spec.repository is None:
            return self._shipped
        of_family = [row for row in self._rows if row["family"] == model.spec.family]
        for row in of_family:
            if all(row.get(key, value) == value for key, value in _kind(model).items()):
                return row
        listed = ", ".join(dict.fromkeys(row["precision"] for row in of_family))
        raise InvalidConfiguration(
            f"precision of {model.spec.name}",
            str(model.precision),
            f"one with known needs ({listed}), or gpu_pools and container_disk_gb set by you",
        )


def _kind(model: ServedModel) -> dict[str, Precision]:
    return {"precision": model.precision, "t5": model.t5, "adaln": model.adaln}
