"""Models that an endpoint serves and their formats; profiles of images are in `profiles.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from pydantic import TypeAdapter

from pixpod.catalog import Catalog
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.families import Precision
from pixpod_tools.deploy.configuration import Configuration, Mode
from pixpod_tools.deploy.errors import InvalidConfiguration
from pixpod_tools.deploy.fit import ServedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Content of an image. `cpu` is the kind of CPU worker that it runs on, if it needs no GPU.

    `t5` and `adaln` are as in `QuantizationPlan`, for all models in float8.
    """

    models: Mapping[str, Precision]
    t5: Precision = Precision.BFLOAT16
    adaln: Precision = Precision.FLOAT8_DYNAMIC
    cpu: str | None = None


def load_profiles() -> Mapping[str, Profile]:
    text = (
        resources.files("pixpod_tools.deploy").joinpath("profiles.toml").read_text(encoding="utf-8")
    )
    return TypeAdapter(dict[str, Profile]).validate_python(tomllib.loads(text))


def find_profile(wanted: Configuration) -> Profile | None:
    """Raises InvalidConfiguration for an unknown name, or if a baked image's is missing."""
    profiles = load_profiles()
    if wanted.profile is None:
        if wanted.mode is Mode.BAKED:
            raise InvalidConfiguration("profile", None, f"any of {', '.join(profiles)}")
        return None
    if wanted.profile not in profiles:
        raise InvalidConfiguration("profile", wanted.profile, f"any of {', '.join(profiles)}")
    return profiles[wanted.profile]


def served_models(
    wanted: Configuration, profile: Profile | None, catalog: Catalog
) -> tuple[ServedModel, ...]:
    """Return the configured models, else all of the profile. Raises InvalidConfiguration."""
    profile = profile or Profile(models={})
    held = profile.models
    names = tuple(held) if wanted.models is None else wanted.models
    if wanted.mode is Mode.BAKED and not held:
        raise InvalidConfiguration(
            "profile", wanted.profile, "one with weights in mode baked; else set mode and models"
        )
    offered = held if wanted.mode is Mode.BAKED else catalog
    for name in names:
        if name not in offered:
            raise InvalidConfiguration("models", name, f"any of {', '.join(offered)}")
    if not names:
        raise InvalidConfiguration("models", None, f"one or more of {', '.join(offered)}")
    if wanted.mode is Mode.CACHED_MODEL:
        _check_cacheable(names, catalog)
    for name in wanted.precision.keys() - set(names):
        raise InvalidConfiguration("precision", name, f"a model that is served: {', '.join(names)}")
    _check_licences(names, catalog, wanted.accept_licences)
    return tuple(
        ServedModel(
            spec=catalog[name],
            baked=_baked(profile, held.get(name) or catalog[name].precision["cuda"]),
            requested=wanted.precision.get(name),
        )
        for name in names
    )


def _baked(profile: Profile, precision: Precision) -> QuantizationPlan:
    if precision is not Precision.FLOAT8_DYNAMIC:
        return QuantizationPlan(precision=precision)
    return QuantizationPlan(precision=precision, t5=profile.t5, adaln=profile.adaln)


def _check_cacheable(names: tuple[str, ...], catalog: Catalog) -> None:
    """The platform caches one repository of the hub per endpoint."""
    if len(names) != 1:
        raise InvalidConfiguration(
            "models", ", ".join(names), "one model in mode cached-model: the platform caches one"
        )
    if catalog[names[0]].repository is None:
        accepted = "a model that is on the hub; this one ships with the source"
        raise InvalidConfiguration("models", names[0], accepted)


def _check_licences(names: tuple[str, ...], catalog: Catalog, accepted: tuple[str, ...]) -> None:
    for name in names:
        spec = catalog[name]
        if spec.licence_must_be_accepted and spec.licence not in accepted:
            raise InvalidConfiguration(
                "accept_licences",
                None,
                f"{spec.licence!r} for {name}: read it, and name it here if you accept it",
            )
