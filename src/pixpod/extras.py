"""Extras that models can be served with, as data: ControlNets and refiners.

They are the tables `[extras.NAME]` of the catalog's files. Knows nothing of files or devices.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, InstanceOf, TypeAdapter, ValidationError

from pixpod.catalog import CHECKS, EXTRAS_TABLE, Catalog, ModelSpec, read_catalog_file
from pixpod.errors import InvalidSettings
from pixpod.families import FAMILIES, ControlNetSpec, FamilySpec, RefinerSpec, Role

LORAS = "loras"
"""Name of room for LoRAs beside extras, which no extra may have."""

ControlType = Annotated[str, Field(pattern="^[a-z][a-z0-9_-]*$")]


class ExtraKind(StrEnum):
    """The role of an extra beside a model."""

    CONTROLNET = "controlnet"
    REFINER = "refiner"

    @property
    def role(self) -> Role:
        return Role(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraSpec:
    """One extra of the catalog: weights in diffusers' layout of a single component.

    `types` are the kinds of control images that a ControlNet sees; others have none. `modes` has
    the number of each type for a net that must be told it (a union net), and is empty for others.
    It fits the models named in `models`, or all of the family. `gib_16` is its size in 16 bits.
    `folder` is its place in the repository, "" for the top.
    """

    __pydantic_config__ = CHECKS

    name: str
    kind: ExtraKind
    family: InstanceOf[FamilySpec]
    licence: str
    gib_16: Annotated[float, Field(gt=0)]
    types: tuple[ControlType, ...] = ()
    modes: Mapping[ControlType, Annotated[int, Field(ge=0)]] = dataclass_field(default_factory=dict)
    models: tuple[str, ...] = ()
    repository: str | None = None
    revision: str | None = None
    folder: str = ""
    licence_must_be_accepted: bool = False

    @property
    def class_name(self) -> str:
        """Name of the diffusers class."""
        spec = _spec_of(self.family, self.kind)
        assert spec is not None, "load_extras has checked it"
        if self.is_union and isinstance(spec, ControlNetSpec) and spec.union_class_name:
            return spec.union_class_name
        return spec.class_name

    @property
    def is_union(self) -> bool:
        """Return whether it is a net that must be told the type of an image."""
        return bool(self.modes)

    def fits(self, spec: ModelSpec) -> bool:
        """Return whether a model can be served with it."""
        return spec.family is self.family and (not self.models or spec.name in self.models)


def _spec_of(family: FamilySpec, kind: ExtraKind) -> ControlNetSpec | RefinerSpec | None:
    """Return a family's own part of a kind of extras, None if it has none of the kind."""
    specs: Mapping[ExtraKind, ControlNetSpec | RefinerSpec | None] = {
        ExtraKind.CONTROLNET: family.controlnet,
        ExtraKind.REFINER: family.refiner,
    }
    return specs[kind]


Extras = Mapping[str, ExtraSpec]

ServedSpec = ModelSpec | ExtraSpec
"""An entry of the catalog that has weights."""

_SPEC = TypeAdapter(ExtraSpec)


def load_extras(
    extra_file: Path | None = None, *, families: Mapping[str, FamilySpec] = FAMILIES
) -> Extras:
    """Read the built-in extras, and add those of `extra_file`, which replace extras of their names.

    Raises InvalidSettings if the file cannot be read or an entry is not complete.
    """
    builtin = resources.files("pixpod").joinpath("catalog.toml").read_text(encoding="utf-8")
    found = _parse(tomllib.loads(builtin), "catalog.toml", families)
    if extra_file is None:
        return found
    return {**found, **_parse(read_catalog_file(extra_file), str(extra_file), families)}


def extras_for(
    spec: ModelSpec, extras: Extras, kind: ExtraKind | None = None
) -> tuple[ExtraSpec, ...]:
    """Return the extras of a kind that fit a model; None for any kind."""
    fitting = (extra for extra in extras.values() if extra.fits(spec))
    return tuple(extra for extra in fitting if kind in (None, extra.kind))


def choose_extras(
    names: Sequence[str] | None,
    known: Extras,
    models: Catalog,
    there: Sequence[str] = (),
    *,
    source: str = "PIXPOD_EXTRAS",
) -> Extras:
    """Return the named extras; without names, those that are there and fit a model.

    Raises InvalidSettings, which names `source`, for a name that is not known or fits no model.
    """
    if names is None:
        names = [
            name for name in there if name in known and any(map(known[name].fits, models.values()))
        ]
    for name in names:
        if name not in known:
            listed = ", ".join(known)
            raise InvalidSettings(
                f"{source}: extra {name!r} is not in the catalog, which has {listed}"
            )
        if not any(map(known[name].fits, models.values())):
            raise InvalidSettings(f"{source}: {name} fits none of {', '.join(models)}")
    return {name: known[name] for name in names}


def check_names(extras: Extras, models: Catalog) -> None:
    """Raise InvalidSettings for a name that a model or a component of a pipeline has, too."""
    for extra in extras.values():
        if extra.name in (LORAS, *models, *extra.family.component_names):
            raise InvalidSettings(f"extra {extra.name!r}: expected a name that nothing else has")


def _parse(
    document: dict[str, Any], source: str, families: Mapping[str, FamilySpec]
) -> dict[str, ExtraSpec]:
    """Check entries. Any: TOML is untyped."""
    entries = document.get(EXTRAS_TABLE, {})
    if not isinstance(entries, dict):
        raise InvalidSettings(f"{source}: {EXTRAS_TABLE}: expected [{EXTRAS_TABLE}.<name>] tables")
    return {name: _parse_one(name, entry, source, families) for name, entry in entries.items()}


def _parse_one(
    name: str, entry: object, source: str, families: Mapping[str, FamilySpec]
) -> ExtraSpec:
    where = f"{source}: extra {name!r}"
    if not isinstance(entry, dict) or "name" in entry:
        raise InvalidSettings(f"{where}: expected a table without a name of its own")
    kind = ExtraKind(_choice(entry, "kind", tuple(ExtraKind), where))
    fitting = [each for each, family in families.items() if _spec_of(family, kind)]
    family = families[_choice(entry, "family", fitting, where)]
    sees_images = kind is ExtraKind.CONTROLNET
    if bool(entry.get("types")) is not sees_images:
        accepted = "some types" if sees_images else "no such field"
        raise InvalidSettings(f"{where}: types: expected {accepted} for a {kind}")
    try:
        # strict types have no tuples in TOML
        lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
        extra = _SPEC.validate_python({**entry, **lists, "name": name, "family": family})
    except ValidationError as exc:
        problem = exc.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, problem["loc"]))
        raise InvalidSettings(f"{where}: {field}: {problem['msg']}") from exc
    _check_modes(extra, where)
    return extra


def _check_modes(extra: ExtraSpec, where: str) -> None:
    if not extra.is_union:
        return
    assert extra.family.controlnet is not None
    if extra.family.controlnet.union_class_name is None:
        raise InvalidSettings(f"{where}: modes: {extra.family.title} has no nets for several types")
    if set(extra.modes) != set(extra.types):
        types, modes = ", ".join(extra.types), ", ".join(extra.modes)
        raise InvalidSettings(f"{where}: modes: expected one for each of {types}, got {modes}")


def _choice(entry: dict[str, Any], field: str, accepted: Sequence[str], where: str) -> str:
    """Return a text that is one of a few. Any: TOML is untyped."""
    found = entry.get(field)
    if found not in accepted:
        known = ", ".join(accepted)
        raise InvalidSettings(f"{where}: {field}: expected one of {known}, got {found!r}")
    return str(found)
