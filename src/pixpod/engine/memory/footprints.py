"""How many bytes the parts of a model take on a device, and how many it takes to work with them.

From the sizes of files where there are any, else from `footprints.toml`. Knows no device.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pixpod.catalog import Family, ModelSpec, Precision, Size
from pixpod.errors import WeightsUnreadable
from pixpod.weights.layout import Weights, component_folder, tensor_paths

GIB = 2**30

_SQUARE_PX = 1024 * 1024

LARGE_ENCODER = "text_encoder_2"
"""T5 in a FLUX model, which may be held in 8 bits."""


class NoFootprint(Exception):
    """A precision of which nothing is known; the text lists those that are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Working:
    """Memory for activations and decoding. `square_bytes` is of one image of 1024x1024."""

    fixed_bytes: int
    square_bytes: int

    def needed_bytes(self, size: Size, num_rows: int) -> int:
        width, height = size
        return self.fixed_bytes + self.square_bytes * width * height * num_rows // _SQUARE_PX


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How a model is held on a device. `t5` None is as its files have it, or 16 bits; `adaln`
    matters in 8 bits only: the layers that modulate each block of a FLUX transformer.
    """

    precision: Precision
    t5: Precision | None = None
    adaln: Precision = Precision.FLOAT8_DYNAMIC


class Footprints:
    """The table, read once."""

    def __init__(self) -> None:
        text = (
            resources.files("pixpod.engine.memory").joinpath("footprints.toml").read_text("utf-8")
        )
        table: dict[str, Any] = tomllib.loads(text)  # TOML is untyped
        self.overhead_bytes = _bytes(table["overhead_gib"])
        self.margin_bytes = _bytes(table["margin_gib"])
        self.text_bytes = _bytes(table["text_gib"])
        self._shipped_bytes = _bytes(table["shipped_gib"])
        self._working = {row["family"]: row for row in table["working"]}
        self._parts = {(row["family"], row["component"]): row for row in table["parts"]}

    def working(self, family: Family) -> Working:
        row = self._working[family]
        return Working(fixed_bytes=_bytes(row["fixed_gib"]), square_bytes=_bytes(row["image_gib"]))

    def working_bytes(self, family: Family, size: Size | None, num_rows: int) -> int:
        """To draw a batch; to encode a text where `size` is None."""
        if size is None:
            return self.text_bytes
        return self.working(family).needed_bytes(size, num_rows)

    def known_bytes(self, spec: ModelSpec, held: Held) -> Mapping[str, int]:
        """Of each component, by the table. Raises NoFootprint."""
        if spec.repository is None:
            return dict.fromkeys(spec.family.components, self._shipped_bytes)
        return {
            component: self._part_bytes(spec, held, component)
            for component in spec.family.components
        }

    def measured_bytes(self, spec: ModelSpec, held: Held, weights: Weights) -> Mapping[str, int]:
        """Of each component, by the size of its files and what becomes of them when loaded.

        Raises WeightsUnreadable.
        """
        stored = weights.precision or Precision.BFLOAT16
        found = {}
        for component in spec.family.components:
            is_denoiser = component == spec.family.denoiser
            size_bytes = files_bytes(weights, component)
            size_bytes *= _bits(held.precision, is_denoiser=is_denoiser)
            found[component] = size_bytes // _bits(stored, is_denoiser=is_denoiser)
        if held.t5 is not None and spec.family is Family.FLUX and spec.repository is not None:
            found[LARGE_ENCODER] = self._part_bytes(spec, held, LARGE_ENCODER)
        return found

    def _part_bytes(self, spec: ModelSpec, held: Held, component: str) -> int:
        row = self._parts[spec.family, component]
        is_denoiser = component == spec.family.denoiser
        bits = _bits(held.precision, is_denoiser=is_denoiser)
        if component == LARGE_ENCODER and held.t5 is not None and "gib_8" in row:
            bits = _bits(held.t5, is_denoiser=True)
        if bits != 8:
            return _bytes(row["gib_16"]) * bits // 16
        column = "gib_8" if held.adaln.is_8_bit or not is_denoiser else "gib_8_adaln16"
        if column not in row:
            raise NoFootprint(", ".join(each for each in Precision if not each.is_8_bit))
        return _bytes(row[column])


def _bits(precision: Precision, *, is_denoiser: bool) -> int:
    """Of most values of a component; 8 bits are for the denoiser."""
    if precision is Precision.FLOAT32:
        return 32
    return 8 if is_denoiser and precision.is_8_bit else 16


def files_bytes(weights: Weights, component: str) -> int:
    """Raises WeightsUnreadable."""
    paths = tensor_paths(component_folder(weights, component))
    try:
        return sum(path.stat().st_size for path in paths)
    except OSError as exc:
        raise WeightsUnreadable(f"{exc.filename}: {exc.strerror}") from exc


def _bytes(gib: float) -> int:
    return round(gib * GIB)
