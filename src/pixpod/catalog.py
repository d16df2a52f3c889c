"""The models we can serve, as data: families, licences, precisions, defaults and limits.

Knows nothing of files or devices; `catalog.toml` beside it is the built-in list.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pixpod.errors import InvalidSettings

CHECKS = ConfigDict(extra="forbid", allow_inf_nan=False)
Count = Annotated[int, Field(gt=0, strict=True)]
Scale = Annotated[float, Field(ge=0, strict=True)]


Size = tuple[int, int]
"""Width and height in pixels."""


class Family(StrEnum):
    """An architecture with its own pipeline, request fields and rules."""

    FLUX = "flux"
    SDXL = "sdxl"
    SD15 = "sd15"

    @property
    def size_multiple_px(self) -> int:
        """Sides must be a multiple of this: VAE stride 8, times 2 for FLUX's packed latents."""
        return 16 if self is Family.FLUX else 8

    @property
    def denoiser(self) -> str:
        """The component that draws, as diffusers names its folder."""
        return "transformer" if self is Family.FLUX else "unet"

    @property
    def text_encoders(self) -> tuple[str, ...]:
        return tuple(name for name in self.components if name.startswith("text_encoder"))

    @property
    def components(self) -> tuple[str, ...]:
        """The folders with weights, in the order in which an image needs them."""
        second = () if self is Family.SD15 else ("text_encoder_2",)
        return ("text_encoder", *second, self.denoiser, "vae")


class Precision(StrEnum):
    """How weights and activations of the denoiser are held; all else stays 16-bit or wider.

    The 8-bit ones are torchao's: `dynamic` quantises activations as they come and computes in 8
    bits, `weight_only` computes in bfloat16 and saves memory only.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT8_DYNAMIC = "float8_dynamic"
    FLOAT8_WEIGHT_ONLY = "float8_weight_only"
    INT8_DYNAMIC = "int8_dynamic"

    @property
    def is_8_bit(self) -> bool:
        return self in (
            Precision.FLOAT8_DYNAMIC,
            Precision.FLOAT8_WEIGHT_ONLY,
            Precision.INT8_DYNAMIC,
        )


STORED = (
    Precision.FLOAT32,
    Precision.BFLOAT16,
    Precision.FLOAT16,
    Precision.FLOAT8_DYNAMIC,
)
"""What a denoiser's files may hold; the others are made of these when they are loaded."""

_UNET_SCHEDULERS = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DDIMScheduler",
    "HeunDiscreteScheduler",
)

SCHEDULERS: Mapping[Family, tuple[str, ...]] = {
    Family.FLUX: ("FlowMatchEulerDiscreteScheduler",),
    Family.SDXL: _UNET_SCHEDULERS,
    Family.SD15: _UNET_SCHEDULERS,
}
"""Names of diffusers classes that a request may choose from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a request gets that does not say; None where the family has no such field."""

    __pydantic_config__ = CHECKS

    width: Count
    height: Count
    num_inference_steps: Count
    scheduler: str
    guidance_scale: Scale | None = None
    max_sequence_length: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest request that the model serves. `max_sequence_length` counts T5 tokens."""

    __pydantic_config__ = CHECKS

    min_side_px: Count
    max_side_px: Count
    max_pixels: Count
    max_steps: Count
    max_guidance: Scale
    max_images: Count
    max_sequence_length: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One entry of the catalog. `precision` maps a device's kind to its default precision; of a
    FLUX model on a card it is that of `quality: max`, the default depends on the card.
    """

    __pydantic_config__ = CHECKS

    name: str
    family: Family
    licence: str
    precision: dict[str, Precision]
    defaults: Defaults
    limits: Limits
    repository: str | None = None
    revision: str | None = None
    vae_repository: str | None = None
    vae_revision: str | None = None
    licence_must_be_accepted: bool = False
    requires_cuda: bool = False
    takes_guidance: bool = True

    @property
    def schedulers(self) -> tuple[str, ...]:
        return SCHEDULERS[self.family]


Catalog = Mapping[str, ModelSpec]

_SPEC = TypeAdapter(ModelSpec)


def load_catalog(extra_file: Path | None = None) -> Catalog:
    """The built-in models, with those of `extra_file` added or put in their place.

    Raises InvalidSettings if the file cannot be read or an entry is not complete.
    """
    builtin = resources.files("pixpod").joinpath("catalog.toml").read_text(encoding="utf-8")
    catalog = _parse(tomllib.loads(builtin), "catalog.toml")
    if extra_file is None:
        return catalog
    try:
        entries = tomllib.loads(extra_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise InvalidSettings(f"PIXPOD_CATALOG={str(extra_file)!r}: {exc}") from exc
    return {**catalog, **_parse(entries, str(extra_file))}


def _parse(entries: dict[str, Any], source: str) -> dict[str, ModelSpec]:
    """TOML is untyped, hence Any; what leaves here is checked."""
    specs = {}
    for name, entry in entries.items():
        where = f"{source}: model {name!r}"
        if not isinstance(entry, dict):
            raise InvalidSettings(f"{where}: accepted is a table")
        if "name" in entry:
            raise InvalidSettings(f"{where}: name: accepted is no such field, the table has it")
        try:
            specs[name] = _SPEC.validate_python({"name": name, **entry})
        except ValidationError as exc:
            problem = exc.errors(include_url=False, include_context=False)[0]
            field = ".".join(map(str, problem["loc"]))
            raise InvalidSettings(f"{where}: {field}: {problem['msg']}") from exc
        _check_fit(specs[name], where)
    return specs


def _check_fit(spec: ModelSpec, where: str) -> None:
    """A catalog whose own defaults break its limits would refuse every plain request."""
    defaults, limits, multiple = spec.defaults, spec.limits, spec.family.size_multiple_px
    sides = range(limits.min_side_px, limits.max_side_px + 1)
    is_flux = spec.family is Family.FLUX
    is_good = {
        "precision": bool(spec.precision) and spec.precision.keys() <= {"cpu", "cuda"},
        "defaults.scheduler": defaults.scheduler in spec.schedulers,
        "defaults.width": defaults.width in sides and defaults.width % multiple == 0,
        "defaults.height": defaults.height in sides and defaults.height % multiple == 0,
        "defaults.num_inference_steps": defaults.num_inference_steps <= limits.max_steps,
        "defaults.guidance_scale": (defaults.guidance_scale is not None) == spec.takes_guidance
        and (defaults.guidance_scale or 0) <= limits.max_guidance,
        "defaults.max_sequence_length": (defaults.max_sequence_length is not None) == is_flux,
        "limits.max_sequence_length": (limits.max_sequence_length is not None) == is_flux
        and (defaults.max_sequence_length or 0) <= (limits.max_sequence_length or 0),
        "limits.min_side_px": limits.min_side_px % multiple == 0,
        "limits.max_side_px": limits.max_side_px % multiple == 0,
        "limits.max_pixels": defaults.width * defaults.height <= limits.max_pixels,
    }
    for field, fits in is_good.items():
        if not fits:
            raise InvalidSettings(f"{where}: {field} does not fit the family or the other fields")
