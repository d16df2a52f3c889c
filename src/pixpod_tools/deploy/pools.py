"""GPU pools of the platform: what fits on them and what they cost; data in `pools.toml`."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from pixpod.pricing import PriceList
from pixpod_tools.deploy.errors import InvalidConfiguration
from pixpod_tools.deploy.footprints import Need

MAX_CHOSEN = 3
"""The platform ranks up to three kinds of GPU; a fourth may cost eight times the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Cards that the platform gives out as one. `usd_per_second` is its dearest card's flex price.

    Without a price a pool is taken by name only. `price_basis` says where prices are from.
    """

    id: str
    usable_gib: float
    has_float8: bool
    usd_per_second: float | None
    price_basis: str

    def fits(self, need: Need) -> bool:
        return need.device_gib <= self.usable_gib and (self.has_float8 or not need.float8)


def load_pools() -> tuple[Pool, ...]:
    prices = PriceList.load()
    basis = prices.cost("RTX 4090", 0).basis
    text = resources.files("pixpod_tools.deploy").joinpath("pools.toml").read_text(encoding="utf-8")
    return tuple(
        Pool(
            id=entry["id"],
            usable_gib=entry["usable_gib"],
            has_float8=entry["has_float8"],
            usd_per_second=_dearest(prices, entry["cards"]),
            price_basis=basis,
        )
        for entry in tomllib.loads(text)["pools"]
    )


def choose_pools(pools: Iterable[Pool], need: Need) -> tuple[Pool, ...]:
    """The cheapest that fit, in order of price. Raises InvalidConfiguration if none does."""
    fitting = _by_price(pool for pool in pools if pool.fits(need))
    if not fitting:
        raise InvalidConfiguration(
            "models",
            None,
            f"what fits on one GPU; these need {need}, more than any pool has: "
            "serve them by several endpoints",
        )
    return fitting[:MAX_CHOSEN]


def named_pools(pools: Sequence[Pool], ids: Sequence[str], need: Need | None) -> tuple[Pool, ...]:
    """The pools of these ids, in the given order; `need` None takes any.

    Raises InvalidConfiguration for an id that is unknown, given twice, or too small, and says
    what fits.
    """
    by_id = {pool.id: pool for pool in pools}
    if len(set(ids)) != len(ids):
        raise InvalidConfiguration("gpu_pools", ", ".join(ids), "each pool once")
    for pool_id in ids:
        if pool_id not in by_id:
            raise InvalidConfiguration("gpu_pools", pool_id, f"any of {', '.join(by_id)}")
        if need is not None and not by_id[pool_id].fits(need):
            fitting = ", ".join(pool.id for pool in pools if pool.fits(need)) or "none"
            accepted = f"a pool on which the models fit; they need {need}: {fitting}"
            raise InvalidConfiguration("gpu_pools", pool_id, accepted)
    return tuple(by_id[pool_id] for pool_id in ids)


def _by_price(pools: Iterable[Pool]) -> tuple[Pool, ...]:
    priced = [(pool.usd_per_second, pool) for pool in pools if pool.usd_per_second is not None]
    return tuple(pool for _, pool in sorted(priced, key=lambda pair: pair[0]))


def _dearest(prices: PriceList, cards: Sequence[str]) -> float | None:
    """A pool without cards, or with a card whose price is not known, has none."""
    known = [prices.cost(card, 1_000.0).estimated_usd for card in cards]
    found = [price for price in known if price is not None]
    return max(found) if found and len(found) == len(known) else None
