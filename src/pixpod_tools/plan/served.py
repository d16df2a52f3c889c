"""From the names that are asked for to what those models need on a card."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pixpod.catalog import Catalog, ModelSpec
from pixpod.engine.device_probe import version_of_torch
from pixpod.engine.memory.footprints import GIB, Footprints, Held
from pixpod.engine.memory.needs import Need, need_of
from pixpod.engine.memory.residency import Budget, budget_for
from pixpod.engine.memory.sharing import Sharing
from pixpod.engine.precision.gpus import Card, find_card, get_known_card
from pixpod.engine.precision.precision import Place, Stored, choose_precision
from pixpod.errors import InvalidSettings, ModelUnavailable
from pixpod.families import Precision
from pixpod.weights.layout import Weights, read_checkpoint_info
from pixpod.weights.sources import BakedSource

FULL_CARD = (8, 9)
"""Where only a memory is given: the oldest class of cards that has all that we use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is planned for. `memory_bytes` is what a driver shows, or what may be used."""

    title: str
    place: Place
    budget: Budget


def find_target(card_name: str | None, memory_gib: float | None, footprints: Footprints) -> Target:
    """A card by name, a memory, or a card of which only so much may be used.

    Raises InvalidSettings for a name that is not known.
    """
    if card_name is None:
        return _target("a card", find_card(FULL_CARD), None, memory_gib, footprints)
    known = get_known_card(card_name)
    memory_bytes = round(known.memory_gib * GIB)
    card = find_card(known.capability)
    return _target(known.name, card, memory_bytes, memory_gib, footprints)


def _target(
    title: str,
    card: Card,
    memory_bytes: int | None,
    limit_gib: float | None,
    footprints: Footprints,
) -> Target:
    budget = budget_for(footprints, memory_bytes, limit_gib)
    assert budget is not None, "one of both is given"
    torch_version = version_of_torch()
    place = Place(
        card=card,
        memory_bytes=budget.card_bytes if limit_gib is not None else memory_bytes,
        has_float8=torch_version is None or card.has_float8(torch_version),
    )
    return Target(title=title, place=place, budget=budget)


def find_needs(
    entries: Iterable[str],
    catalog: Catalog,
    weights_dir: Path | None,
    target: Target,
    footprints: Footprints,
) -> tuple[Need, ...]:
    """`entries` are names, each with `=` and a precision if the choice is not the worker's.

    Raises InvalidSettings, and what a worker on that card would answer.
    """
    needs, sharing = [], Sharing()
    for entry in entries:
        name, _, precision = entry.partition("=")
        if name not in catalog:
            raise InvalidSettings(f"--models {entry}: accepted are {', '.join(catalog)}")
        if precision and precision not in list(Precision):
            raise InvalidSettings(f"--models {entry}: accepted are {', '.join(Precision)}")
        asked = Precision(precision) if precision else None
        spec = catalog[name]
        weights = _find_weights(spec, weights_dir)
        stored = read_checkpoint_info(spec, weights) if weights else _usual(spec, asked, footprints)
        held = _choose(spec, stored, target.place, asked)
        parts = sharing.parts_of(spec, held, weights)
        needs.append(need_of(spec, held, footprints, weights, parts))
    return tuple(needs)


def _choose(spec: ModelSpec, stored: Stored, place: Place, asked: Precision | None) -> Held:
    """As a worker would; whether what is asked for fits, the plan is to say."""
    suited = choose_precision(spec, stored, place, is_compiling=True)
    if asked is None:
        return QuantizationPlan(precision=suited.precision, t5=suited.t5)
    anywhere = replace(place, memory_bytes=None)
    choice = choose_precision(spec, stored, anywhere, asked=asked, is_compiling=True)
    return QuantizationPlan(precision=choice.precision, t5=suited.t5)


def _find_weights(spec: ModelSpec, weights_dir: Path | None) -> Weights | None:
    if weights_dir is None:
        return None
    weights = BakedSource(weights_dir).find(spec)
    if weights is None:
        raise ModelUnavailable(f"{spec.name} is not in {weights_dir}")
    return weights


def _usual(spec: ModelSpec, asked: Precision | None, footprints: Footprints) -> Stored:
    """As `scripts/bake` would store it for this precision."""
    is_float8 = asked is Precision.FLOAT8_DYNAMIC
    stored = Precision.FLOAT8_DYNAMIC if is_float8 else Precision.BFLOAT16
    sizes = footprints.known_bytes(spec, QuantizationPlan(precision=stored))
    return Stored(
        denoiser=stored if is_float8 else None, denoiser_bytes=sizes[spec.family.denoiser]
    )
