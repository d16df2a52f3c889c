"""Classes of cards: what each computes fast and what is chosen on it; data in `gpus.toml`.

Standard library only, so that plans can be made and hosts be checked without torch.
"""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from pixpod.errors import DeviceUnavailable, InvalidSettings
from pixpod.families import Precision

Capability = tuple[int, int]
"""Compute capability, major and minor, as the driver and torch tell it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A class of cards. `compiled` and `eager` are what a FLUX denoiser with 16-bit weights runs
    in; `float8_since` is the first torch whose FP8 by rows works there, None for a class without
    FP8. `attention` is a backend of diffusers. `cautions` are for the reply.
    """

    name: str
    capability: Capability
    float8_since: tuple[int, int] | None
    attention: str
    compiled: Precision
    eager: Precision
    source: str
    cautions: tuple[str, ...] = ()

    def has_float8(self, torch_version: str) -> bool:
        """Whether FP8 by rows works there with this torch, e.g. `2.13.0+cu130`."""
        major, minor = torch_version.split(".")[:2]
        return self.float8_since is not None and (int(major), int(minor)) >= self.float8_since


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCard:
    """A card by name, where there is none to ask. `memory_gib` is what its driver shows."""

    name: str
    capability: Capability
    memory_gib: float


def find_card(capability: Capability) -> Card:
    """The class of this capability; the nearest older one, with a caution, where there is none.

    Raises DeviceUnavailable for a card that is older than all classes.
    """
    cards, wanted = load_cards(), _dotted(capability)
    not_newer = [card for card in cards if card.capability <= capability]
    if not not_newer:
        oldest = _dotted(cards[0].capability)
        raise DeviceUnavailable(
            f"a card of compute capability {wanted} is too old: accepted are {oldest} and higher"
        )
    found = not_newer[-1]
    if found.capability == capability:
        return found
    caution = (
        f"compute capability {wanted} is not in the table of cards: treated as {found.name}, "
        f"{_dotted(found.capability)}"
    )
    return replace(found, capability=capability, cautions=(*found.cautions, caution))


def get_known_card(name: str) -> KnownCard:
    """The card that is meant by `RTX 4090`, `4090` or `NVIDIA GeForce RTX 4090`.

    Raises InvalidSettings with all names if there is none.
    """
    wanted = name.strip().casefold()
    cards = load_known_cards()
    for card in sorted(cards, key=lambda card: len(card.name), reverse=True):
        if card.name.casefold() in wanted:
            return card
    for card in cards:
        if wanted and wanted in card.name.casefold():
            return card
    accepted = ", ".join(card.name for card in cards)
    raise InvalidSettings(f"card {name!r}: accepted are {accepted}")


def load_cards() -> tuple[Card, ...]:
    """All classes, the oldest first."""
    return tuple(sorted(map(_parse, _table()["cards"]), key=lambda card: card.capability))


def load_known_cards() -> tuple[KnownCard, ...]:
    return tuple(
        KnownCard(
            name=row["name"],
            capability=_pair(row["capability"]),
            memory_gib=row["memory_gib"],
        )
        for row in _table()["known"]
    )


def _table() -> dict[str, Any]:
    """TOML is untyped, hence Any."""
    text = (
        resources.files("pixpod.engine.precision").joinpath("gpus.toml").read_text(encoding="utf-8")
    )
    return tomllib.loads(text)


def _parse(row: dict[str, Any]) -> Card:
    return Card(
        name=row["name"],
        capability=_pair(row["capability"]),
        float8_since=_pair(row["float8_since"]) if "float8_since" in row else None,
        attention=row["attention"],
        compiled=Precision(row["compiled"]),
        eager=Precision(row["eager"]),
        source=" ".join(row["source"].split()),
        cautions=(row["caution"],) if "caution" in row else (),
    )


def _pair(numbers: Iterable[int]) -> tuple[int, int]:
    major, minor = numbers
    return major, minor


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"
