"""Models that can be served, as data: family, licence, precision, defaults and limits.

Knows nothing of files or devices. `catalog.toml` beside it is the built-in list.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError

from pixpod.errors import InvalidSettings
from pixpod.families import (
    FAMILIES,
    DenoiserSize,
    FamilySpec,
    Precision,
    QuantizationSpec,
    SchedulerSpec,
)
from pixpod.job import (
    GenerationRequest,
    Mode,
    Prompts,
    Quality,
    Sampling,
    TextOptions,
    grey_conditions,
)

CHECKS = ConfigDict(extra="forbid", allow_inf_nan=False)
Count = Annotated[int, Field(gt=0, strict=True)]
Scale = Annotated[float, Field(ge=0, strict=True)]


DEFAULT_STRENGTHS: Mapping[Mode, float] = {Mode.IMAGE_TO_IMAGE: 0.6, Mode.INPAINT: 1.0}

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Values of fields that a request leaves out; None where the family has no such field."""

    __pydantic_config__ = CHECKS

    width: Count
    height: Count
    num_inference_steps: Count
    scheduler: str
    guidance_scale: Scale | None = None
    max_sequence_length: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest request that the model serves. `max_sequence_length` counts tokens."""

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
    """One entry of the catalog.

    `precision` maps a device type to the default precision there; for families that can be
    quantized, on a GPU it is the 16-bit format, and the GPU decides whether it is used, unless the
    model `keeps_16_bit`. `denoiser_file` replaces the denoiser's weights in the repository.
    `schedulers` and `step_counts` are the only ones that the model takes, empty for all. `family`
    has no component of `without`, and a denoiser of `denoiser_size` if that is given.
    """

    __pydantic_config__ = CHECKS

    name: str
    family: InstanceOf[FamilySpec]
    licence: str
    precision: dict[str, Precision]
    defaults: Defaults
    limits: Limits
    repository: str | None = None
    revision: str | None = None
    vae_repository: str | None = None
    vae_revision: str | None = None
    denoiser_repository: str | None = None
    denoiser_revision: str | None = None
    denoiser_file: str | None = None
    denoiser_size: DenoiserSize | None = None
    without: tuple[str, ...] = ()
    licence_must_be_accepted: bool = False
    requires_cuda: bool = False
    takes_guidance: bool = True
    keeps_16_bit: bool = False
    schedulers: tuple[str, ...] = ()
    step_counts: tuple[Count, ...] = ()

    @property
    def quantization(self) -> QuantizationSpec | None:
        """The layers that 8-bit formats spare; None if the model does not run in 8 bits."""
        return None if self.keeps_16_bit else self.family.quantization

    @property
    def scheduler_specs(self) -> Mapping[str, SchedulerSpec]:
        """The schedulers that requests may name."""
        offered = self.family.schedulers
        return {name: offered[name] for name in self.schedulers or offered}

    def is_size_served(self, width: int, height: int) -> bool:
        limits, multiple = self.limits, self.family.size_multiple_px
        return width * height <= limits.max_pixels and all(
            limits.min_side_px <= side <= limits.max_side_px and side % multiple == 0
            for side in (width, height)
        )

    def default_request(self, **changes: Any) -> GenerationRequest:  # noqa: ANN401 - types differ
        """A request with the model's defaults, for all callers that are not jobs.

        `changes` are fields of GenerationRequest or of the values inside of it. Without a mode, it
        is the family's main one, with a grey image where that needs one. Raises TypeError for an
        unknown field.
        """
        defaults = self.defaults
        values: dict[str, Any] = {
            "num_inference_steps": defaults.num_inference_steps,
            "scheduler": defaults.scheduler,
            "guidance_scale": defaults.guidance_scale,
            "max_sequence_length": defaults.max_sequence_length,
            "prompt": "a photo of a lighthouse",
            "model": self.name,
            "mode": self.family.default_mode,
            "quality": Quality.DEFAULT,
            "width": defaults.width,
            "height": defaults.height,
            "seeds": (0,),
            **changes,
        }
        if "mode" not in changes and values["mode"] is not Mode.TEXT_TO_IMAGE:
            values.setdefault("strength", DEFAULT_STRENGTHS.get(values["mode"]))
            has_mask = values["mode"] is Mode.INPAINT
            grey = grey_conditions(values["width"], values["height"], has_mask=has_mask)
            values.setdefault("conditions", grey)
        for name, part in _PARTS.items():
            given = {
                each.name: values.pop(each.name) for each in fields(part) if each.name in values
            }
            values.setdefault(name, part(**given))
        return GenerationRequest(**values)


_PARTS: Mapping[str, type[Sampling | TextOptions | Prompts]] = {
    "sampling": Sampling,
    "text": TextOptions,
    "prompts": Prompts,
}
"""The values inside of a GenerationRequest."""

Catalog = Mapping[str, ModelSpec]

EXTRAS_TABLE = "extras"
"""The table of a catalog's file that has no model, but what models can be served with."""

_SPEC = TypeAdapter(ModelSpec)


def load_catalog(
    extra_file: Path | None = None, *, families: Mapping[str, FamilySpec] = FAMILIES
) -> Catalog:
    """Read the built-in models, and add those of `extra_file`, which replace models of their names.

    Raises InvalidSettings if the file cannot be read or an entry is not complete.
    """
    builtin = resources.files("pixpod").joinpath("catalog.toml").read_text(encoding="utf-8")
    catalog = _parse(tomllib.loads(builtin), "catalog.toml", families)
    if extra_file is None:
        return catalog
    return {**catalog, **_parse(read_catalog_file(extra_file), str(extra_file), families)}


def read_catalog_file(path: Path) -> dict[str, Any]:
    """Return the tables of a deployment's file. Any: TOML is untyped. Raises InvalidSettings."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise InvalidSettings(f"PIXPOD_CATALOG={str(path)!r}: {exc}") from exc


def _parse(
    entries: dict[str, Any], source: str, families: Mapping[str, FamilySpec]
) -> dict[str, ModelSpec]:
    """Check entries. Any: TOML is untyped."""
    specs = {}
    for name, entry in entries.items():
        if name == EXTRAS_TABLE:
            continue
        where = f"{source}: model {name!r}"
        if not isinstance(entry, dict):
            raise InvalidSettings(f"{where}: expected a table, got {entry!r}")
        if "name" in entry:
            raise InvalidSettings(f"{where}: name: expected no such field, the table has it")
        family = families.get(entry.get("family", ""))
        if family is None:
            known = ", ".join(families)
            got = entry.get("family")
            raise InvalidSettings(f"{where}: family: expected one of {known}, got {got!r}")
        try:
            specs[name] = _SPEC.validate_python({**entry, "name": name, "family": family})
        except ValidationError as exc:
            problem = exc.errors(include_url=False, include_context=False)[0]
            field = ".".join(map(str, problem["loc"]))
            raise InvalidSettings(f"{where}: {field}: {problem['msg']}") from exc
        _check_fit(specs[name], where)
        specs[name] = _with_own_family(specs[name])
    return specs


def _with_own_family(spec: ModelSpec) -> ModelSpec:
    """Return the spec with a family that has what the model has."""
    if not spec.without and spec.denoiser_size is None:
        return spec
    family = spec.family.variant(without=spec.without, denoiser_size=spec.denoiser_size)
    return replace(spec, family=family)


def _check_fit(spec: ModelSpec, where: str) -> None:
    """Refuse a catalog whose own defaults break its limits: it would refuse plain requests."""
    defaults, limits, family = spec.defaults, spec.limits, spec.family
    multiple = family.size_multiple_px
    schedulers = spec.schedulers or tuple(family.schedulers)
    counts = spec.step_counts or (defaults.num_inference_steps,)
    sides = range(limits.min_side_px, limits.max_side_px + 1)
    has_length = family.has_sequence_length
    is_good = {
        "precision": bool(spec.precision) and spec.precision.keys() <= {"cpu", "cuda"},
        "denoiser_file": spec.denoiser_file is None or "/" not in spec.denoiser_file,
        "denoiser_repository": bool(spec.denoiser_repository) == bool(spec.denoiser_file),
        "without": set(spec.without) <= family.optional_components,
        "schedulers": set(schedulers) <= family.schedulers.keys(),
        "step_counts": max(spec.step_counts, default=0) <= limits.max_steps,
        "defaults.scheduler": defaults.scheduler in schedulers,
        "defaults.width": defaults.width in sides and defaults.width % multiple == 0,
        "defaults.height": defaults.height in sides and defaults.height % multiple == 0,
        "defaults.num_inference_steps": defaults.num_inference_steps in counts
        and defaults.num_inference_steps <= limits.max_steps,
        "defaults.guidance_scale": (defaults.guidance_scale is not None) == spec.takes_guidance
        and (defaults.guidance_scale or 0) <= limits.max_guidance,
        "defaults.max_sequence_length": (defaults.max_sequence_length is not None) == has_length,
        "limits.max_sequence_length": (limits.max_sequence_length is not None) == has_length
        and (defaults.max_sequence_length or 0) <= (limits.max_sequence_length or 0),
        "limits.min_side_px": limits.min_side_px % multiple == 0,
        "limits.max_side_px": limits.max_side_px % multiple == 0,
        "limits.max_pixels": defaults.width * defaults.height <= limits.max_pixels,
    }
    for field, fits in is_good.items():
        if not fits:
            raise InvalidSettings(f"{where}: {field} does not fit the family or the other fields")
