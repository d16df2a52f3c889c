"""Extras that models can be served with, as data: ControlNets, refiners, upscalers and others.

They are the tables `[extras.NAME]` of the catalog's files. Knows nothing of files or devices.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, InstanceOf, TypeAdapter, ValidationError

from pixpod.catalog import CHECKS, EXTRAS_TABLE, Catalog, Count, ModelSpec, read_catalog_file
from pixpod.errors import InvalidSettings
from pixpod.families import (
    FAMILIES,
    ComponentSpec,
    ControlNetSpec,
    FamilySpec,
    ImagePromptSpec,
    Precision,
    RefinerSpec,
    Role,
)
from pixpod.job import ImagePromptOptions

LORAS = "loras"
"""Name of room for LoRAs beside extras, which no extra may have."""

DEPTH = "depth"
"""The type of control images that depth estimators make."""

Scale = Literal[2, 4]
"""Factors by which images can be made larger."""

ControlType = Annotated[str, Field(pattern="^[a-z][a-z0-9_-]*$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+\.safetensors$")]


class ExtraKind(StrEnum):
    """The role of an extra beside a model."""

    CONTROLNET = "controlnet"
    REFINER = "refiner"
    IMAGE_ENCODER = "image_encoder"
    IP_ADAPTER = "ip_adapter"
    REDUX = "redux"
    UPSCALER = "upscaler"
    DEPTH_ESTIMATOR = "depth_estimator"

    @property
    def role(self) -> Role:
        return Role(self.value)

    @property
    def has_family(self) -> bool:
        """Return whether it is made for the models of one family."""
        return self is not ExtraKind.IMAGE_ENCODER and not self.sees_pixels

    @property
    def sees_pixels(self) -> bool:
        """Return whether it takes and makes images as they are, of any model."""
        return self in (ExtraKind.UPSCALER, ExtraKind.DEPTH_ESTIMATOR)

    @property
    def is_image_prompt(self) -> bool:
        """Return whether requests name it for their image prompts."""
        return self in (ExtraKind.IP_ADAPTER, ExtraKind.REDUX)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraSpec:
    """One extra of the catalog: weights in the layout in which they are published.

    `family` is None for an image encoder, which fits where an adapter names it as its `encoder`,
    and for what sees images of any model: an upscaler, which makes their sides `scale` times as
    long, and a depth estimator.
    `types` are the kinds of control images that a ControlNet sees; others have none. `modes` has
    the number of each type for a net that takes it as an input (a union net), else it is empty.
    It fits the models named in `models`, else all of the family. `gib_16` is its size in 16 bits.
    `folder` is its place in the repository, "" for the top, and `file` the name of its only file
    there, None for whole components. An image encoder sees squares with sides of `size_px`, a depth
    estimator images of about that size, and each image adds `num_tokens` to the text, which only
    some adapters do.
    """

    __pydantic_config__ = CHECKS

    name: str
    kind: ExtraKind
    family: InstanceOf[FamilySpec] | None
    licence: str
    gib_16: Annotated[float, Field(gt=0)]
    types: tuple[ControlType, ...] = ()
    encoder: str | None = None
    file: FileName | None = None
    size_px: Count | None = None
    num_tokens: Count | None = None
    scale: Scale | None = None
    modes: Mapping[ControlType, Annotated[int, Field(ge=0)]] = dataclass_field(default_factory=dict)
    models: tuple[str, ...] = ()
    repository: str | None = None
    revision: str | None = None
    folder: str = ""
    licence_must_be_accepted: bool = False

    @property
    def components(self) -> tuple[ComponentSpec, ...]:
        """Its components, which are named after their folders: "" for `folder` itself."""
        return tuple(
            ComponentSpec(name=folder, role=role, class_name=class_name, gib_16=self.gib_16)
            for folder, role, class_name in self._parts()
        )

    def _parts(self) -> Iterator[tuple[str, Role, str]]:
        match self.kind:
            case ExtraKind.CONTROLNET | ExtraKind.REFINER:
                yield "", self.kind.role, self._class_name
            case ExtraKind.IMAGE_ENCODER:
                yield "", self.kind.role, "CLIPVisionModelWithProjection"
            case ExtraKind.REDUX:
                yield "image_encoder", Role.IMAGE_ENCODER, "SiglipVisionModel"
                yield "image_embedder", self.kind.role, "ReduxImageEncoder"
            case ExtraKind.UPSCALER:
                yield "", self.kind.role, "Swin2SRForImageSuperResolution"
            case ExtraKind.DEPTH_ESTIMATOR:
                yield "", self.kind.role, "DepthAnythingForDepthEstimation"
            case ExtraKind.IP_ADAPTER:
                pass  # a file of its own format

    @property
    def _class_name(self) -> str:
        """Name of the class that the family has for this kind."""
        spec = _spec_of(self.family, self.kind) if self.family else None
        assert isinstance(spec, ControlNetSpec | RefinerSpec), "load_extras has checked it"
        if self.is_union and isinstance(spec, ControlNetSpec) and spec.union_class_name:
            return spec.union_class_name
        return spec.class_name

    @property
    def sets_attention_backend(self) -> bool:
        """Return whether it is a net whose attention runs on the kernels of the denoiser."""
        is_net = self.kind is ExtraKind.CONTROLNET
        return is_net and self.family is not None and self.family.sets_attention_backend

    @property
    def is_union(self) -> bool:
        """Return whether the net takes the type of an image as an input."""
        return bool(self.modes)

    def precision_beside(self, wide: Precision) -> Precision:
        """Return its number format beside a model whose other components are in `wide`.

        bfloat16 has fewer values between 0 and 1 than an image has levels.
        """
        return Precision.FLOAT32 if self.kind.sees_pixels else wide

    def fits(self, spec: ModelSpec) -> bool:
        """Return whether a model can be served with it. Of image encoders, adapters decide."""
        is_of_family = self.kind.sees_pixels or (
            self.family is not None and self.family.name == spec.family.name
        )
        return is_of_family and (not self.models or spec.name in self.models)


def _spec_of(
    family: FamilySpec, kind: ExtraKind
) -> ControlNetSpec | RefinerSpec | ImagePromptSpec | None:
    """Return a family's own part of a kind of extras, None if it has none of the kind."""
    if kind is ExtraKind.CONTROLNET:
        return family.controlnet
    if kind is ExtraKind.REFINER:
        return family.refiner
    prompt = family.image_prompt
    return prompt if prompt and prompt.adapter is kind.role else None


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
    if extra_file is not None:
        found |= _parse(read_catalog_file(extra_file), str(extra_file), families)
    _check_encoders(found)
    return found


def extras_for(
    spec: ModelSpec, extras: Extras, kind: ExtraKind | None = None
) -> tuple[ExtraSpec, ...]:
    """Return the extras of a kind that fit a model, and image encoders of those; None for any."""
    fitting = [extra for extra in extras.values() if extra.fits(spec)]
    encoders = {extra.encoder for extra in fitting}
    return tuple(
        extra
        for extra in extras.values()
        if (extra in fitting or extra.name in encoders) and kind in (None, extra.kind)
    )


def choose_extras(
    names: Sequence[str] | None,
    known: Extras,
    models: Catalog,
    there: Sequence[str] = (),
    *,
    source: str = "PIXPOD_EXTRAS",
) -> Extras:
    """Return the named extras; without names, those that are there and fit a model.

    An adapter brings its image encoder along. Raises InvalidSettings, which names `source`, for a
    name that is not known or fits no model.
    """
    fitting = {extra.name for spec in models.values() for extra in extras_for(spec, known)}
    if names is None:
        usable = (None, *there)
        names = [name for name in there if name in fitting and known[name].encoder in usable]
    for name in names:
        if name not in known:
            listed = ", ".join(known)
            raise InvalidSettings(
                f"{source}: extra {name!r} is not in the catalog, which has {listed}"
            )
        if name not in fitting:
            raise InvalidSettings(f"{source}: {name} fits none of {', '.join(models)}")
    encoders = [encoder for name in names if (encoder := known[name].encoder)]
    return {name: known[name] for name in (*names, *encoders)}


def image_prompt_options(
    adapter: ExtraSpec, extras: Extras, num_images: int, scale: float
) -> ImagePromptOptions:
    """Return the options of a prompt of so many images; `extras` have the adapter's encoder."""
    encoder = extras[adapter.encoder] if adapter.encoder else adapter
    assert encoder.size_px is not None, "load_extras has checked it"
    return ImagePromptOptions(
        adapter=adapter.name,
        encoder=adapter.encoder,
        num_images=num_images,
        size_px=encoder.size_px,
        text_tokens=num_images * (adapter.num_tokens or 0),
        scale=scale,
    )


def check_names(extras: Extras, models: Catalog) -> None:
    """Raise InvalidSettings for a name that a model or a component of a pipeline has, too."""
    families = {spec.family for spec in models.values()}
    components = {name for family in families for name in family.component_names}
    for extra in extras.values():
        if extra.name in (LORAS, *models, *components):
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
    family = None
    if kind.has_family:
        fitting = [each for each, family in families.items() if _spec_of(family, kind)]
        family = families[_choice(entry, "family", fitting, where)]
    _check_fields(entry, kind, where)
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


_FIELDS: Mapping[str, frozenset[ExtraKind]] = {
    "types": frozenset({ExtraKind.CONTROLNET}),
    "encoder": frozenset({ExtraKind.IP_ADAPTER}),
    "file": frozenset({ExtraKind.IP_ADAPTER}),
    "size_px": frozenset({ExtraKind.IMAGE_ENCODER, ExtraKind.REDUX, ExtraKind.DEPTH_ESTIMATOR}),
    "num_tokens": frozenset({ExtraKind.REDUX}),
    "scale": frozenset({ExtraKind.UPSCALER}),
    "family": frozenset(kind for kind in ExtraKind if kind.has_family),
}
"""Fields that only some kinds have: these must."""


def _check_fields(entry: dict[str, Any], kind: ExtraKind, where: str) -> None:
    """Check fields that depend on the kind. Any: TOML is untyped."""
    for field, kinds in _FIELDS.items():
        if bool(entry.get(field)) is not (kind in kinds):
            accepted = "a value" if kind in kinds else "no such field"
            raise InvalidSettings(f"{where}: {field}: expected {accepted} for a {kind}")


def _choice(entry: dict[str, Any], field: str, accepted: Sequence[str], where: str) -> str:
    """Return a text that is one of a few. Any: TOML is untyped."""
    found = entry.get(field)
    if found not in accepted:
        known = ", ".join(accepted)
        raise InvalidSettings(f"{where}: {field}: expected one of {known}, got {found!r}")
    return str(found)


def _check_encoders(extras: Extras) -> None:
    """Raise InvalidSettings for an adapter whose image encoder is not there."""
    for extra in extras.values():
        encoder = extras.get(extra.encoder) if extra.encoder else None
        if extra.encoder and (encoder is None or encoder.kind is not ExtraKind.IMAGE_ENCODER):
            raise InvalidSettings(
                f"extra {extra.name!r}: encoder: expected the name of an extra of the kind "
                f"{ExtraKind.IMAGE_ENCODER}, got {extra.encoder!r}"
            )


def _check_modes(extra: ExtraSpec, where: str) -> None:
    if not extra.is_union:
        return
    spec = extra.family.controlnet if extra.family else None
    if extra.kind is not ExtraKind.CONTROLNET or extra.family is None or spec is None:
        raise InvalidSettings(f"{where}: modes: expected no such field for a {extra.kind}")
    if spec.union_class_name is None:
        raise InvalidSettings(f"{where}: modes: {extra.family.title} has no nets for several types")
    if set(extra.modes) != set(extra.types):
        types, modes = ", ".join(extra.types), ", ".join(extra.modes)
        raise InvalidSettings(f"{where}: modes: expected one for each of {types}, got {modes}")
