"""Models that an endpoint serves, and the formats of their files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pixpod.catalog import Catalog
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.errors import InvalidSettings
from pixpod.extras import Extras, ServedSpec, choose_extras
from pixpod.families import Precision
from pixpod.stacks import Presets, Stack, parse_stacks
from pixpod_tools.bake.recipes import PROFILES, Profile
from pixpod_tools.deploy.configuration import Configuration, Mode
from pixpod_tools.deploy.errors import InvalidConfiguration
from pixpod_tools.deploy.fit import ServedModel

CPU_FLAVORS: Mapping[str | None, str] = {"tiny": "cpu5c"}
"""Kinds of CPU workers for the profiles that need no GPU."""


def served_models(
    wanted: Configuration, catalog: Catalog, extras: Extras, presets: Presets
) -> tuple[ServedModel, ...]:
    """Return the configured models, else all of the profile, with their extras and stacks.

    Raises InvalidConfiguration.
    """
    baked = _baked_plans(wanted)
    names = tuple(baked) if wanted.models is None else wanted.models
    if wanted.mode is Mode.BAKED and not baked:
        raise InvalidConfiguration(
            "profile", wanted.profile, "one with weights in mode baked; else set mode and models"
        )
    offered = baked if wanted.mode is Mode.BAKED else catalog
    for name in names:
        if name not in offered:
            raise InvalidConfiguration("models", name, f"any of {', '.join(offered)}")
    if not names:
        raise InvalidConfiguration("models", None, f"one or more of {', '.join(offered)}")
    if wanted.mode is Mode.CACHED_MODEL:
        _check_cacheable(names, catalog)
    for name in wanted.precision.keys() - set(names):
        raise InvalidConfiguration("precision", name, f"a model that is served: {', '.join(names)}")
    _check_licences([catalog[name] for name in names], wanted.accept_licences)
    served = {name: catalog[name] for name in names}
    chosen = _choose_extras(wanted, served, extras)
    _check_licences(list(chosen.values()), wanted.accept_licences)
    stacks = _parse_stacks(wanted, served, chosen, presets)
    return tuple(
        ServedModel(
            spec=catalog[name],
            baked=_with_t5(
                baked.get(name) or QuantizationPlan(precision=catalog[name].precision["cuda"])
            ),
            requested=wanted.precision.get(name),
            extras=chosen,
            stacks=stacks,
        )
        for name in names
    )


def _baked_plans(wanted: Configuration) -> Mapping[str, QuantizationPlan]:
    """Return the models of the profile; none without one, which a baked image must have."""
    if wanted.profile is None and wanted.mode is not Mode.BAKED:
        return {}
    if wanted.profile is None or wanted.profile not in PROFILES:
        raise InvalidConfiguration("profile", wanted.profile, f"any of {', '.join(PROFILES)}")
    return {recipe.model: recipe.plan for recipe in PROFILES[wanted.profile].models}


def _with_t5(plan: QuantizationPlan) -> QuantizationPlan:
    """Return a float8 plan with the format that the bake gives T5."""
    if plan.precision is not Precision.FLOAT8_DYNAMIC:
        return plan
    return replace(plan, t5=plan.t5 or Precision.BFLOAT16)


def _check_cacheable(names: tuple[str, ...], catalog: Catalog) -> None:
    """Refuse models of several repositories: the platform caches one repository per endpoint."""
    if len(names) != 1:
        raise InvalidConfiguration(
            "models", ", ".join(names), "one model in mode cached-model: the platform caches one"
        )
    if catalog[names[0]].denoiser_file:
        accepted = "a model of one repository; the denoiser of this one is in another"
        raise InvalidConfiguration("models", names[0], accepted)
    if catalog[names[0]].repository is None:
        accepted = "a model that is on the hub; this one ships with the source"
        raise InvalidConfiguration("models", names[0], accepted)


def _choose_extras(wanted: Configuration, models: Catalog, known: Extras) -> Extras:
    """Return the configured extras, else those of the profile that fit a model."""
    profile = PROFILES[wanted.profile] if wanted.profile else Profile(models=())
    there = [text.partition("=")[0] for text in profile.extras]
    try:
        return choose_extras(wanted.extras, known, models, there)
    except InvalidSettings as error:
        raise InvalidConfiguration("extras", None, f"what a worker takes: {error}") from error


def _parse_stacks(
    wanted: Configuration, models: Catalog, extras: Extras, presets: Presets
) -> tuple[Stack, ...]:
    try:
        return parse_stacks(wanted.stacks, models, extras, presets=presets)
    except InvalidSettings as error:
        raise InvalidConfiguration("stacks", None, f"what a worker takes: {error}") from error


def _check_licences(specs: Sequence[ServedSpec], accepted: tuple[str, ...]) -> None:
    for spec in specs:
        if spec.licence_must_be_accepted and spec.licence not in accepted:
            raise InvalidConfiguration(
                "accept_licences",
                None,
                f"{spec.licence!r} for {spec.name}: read it, and name it here if you accept it",
            )
