"""The estimated cost of a job's device time; prices are data in `pricing.toml`.

A reply reports the job's own share of the GPU; the platform bills a worker's whole life.
"""

import re
import tomllib
from dataclasses import dataclass
from importlib import resources

from pixpod.job import Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars per second of one card, and where the figure comes from."""

    card: str
    usd_per_second: float
    basis: str


class PriceList:
    """Prices by card. A deployment's own price, if given, holds for whatever card it has."""

    def __init__(self, prices: tuple[Price, ...], own_usd_per_second: float | None = None) -> None:
        self._prices = prices
        self._own = own_usd_per_second

    @classmethod
    def load(cls, own_usd_per_second: float | None = None) -> "PriceList":
        text = resources.files("pixpod").joinpath("pricing.toml").read_text(encoding="utf-8")
        table = tomllib.loads(text)
        basis = f"{table['source']} {table['as_of']}"
        prices = tuple(Price(**entry, basis=basis) for entry in table["prices"])
        return cls(prices, own_usd_per_second)

    def cost(self, device_name: str, gpu_ms: float) -> Cost:
        """The share of `device_name` that `gpu_ms` is; no estimate for an unknown card."""
        price = self._find(device_name)
        return Cost(
            gpu=device_name,
            gpu_ms=gpu_ms,
            estimated_usd=round(gpu_ms / 1e3 * price.usd_per_second, 8) if price else None,
            basis=price.basis if price else "no price is known for this device",
        )

    def _find(self, device_name: str) -> Price | None:
        if self._own is not None:
            basis = "PIXPOD_USD_PER_GPU_SECOND"
            return Price(card=device_name, usd_per_second=self._own, basis=basis)
        return next((price for price in self._prices if _is_card(price.card, device_name)), None)


def _is_card(card: str, device_name: str) -> bool:
    """`L40` is also an L40S, but `A40` is no A4000, and `H200` no GH200."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(card)}(?![0-9])", device_name) is not None
