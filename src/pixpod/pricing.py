"""What the device time of a job is estimated to cost; prices are data in `pricing.toml`.

A reply tells the job's own share of the card. The platform bills a worker's whole life: `compare`
says what the rest of a bill was for.
"""

import re
import tomllib
from collections.abc import Iterable, Sequence
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLife:
    """A worker from start to full stop as the platform bills it, in whole seconds rounded up."""

    start_s: float
    run_s: float
    idle_s: float
    billed_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A bill in US dollars by what it was for; the parts add up to `bill_usd`.

    `jobs_usd` is what replies tell. While jobs were there, but none was on the card, they were
    fetched, encoded or uploaded, or the SDK paused: `beside_usd`.
    """

    jobs_usd: float
    beside_usd: float
    start_usd: float
    idle_usd: float
    rounding_usd: float

    @property
    def bill_usd(self) -> float:
        parts = (self.jobs_usd, self.beside_usd, self.start_usd, self.idle_usd, self.rounding_usd)
        return sum(parts)

    @property
    def jobs_share(self) -> float:
        return self.jobs_usd / self.bill_usd if self.bill_usd else 0.0


def compare(
    gpu_ms: Iterable[float], lives: Sequence[WorkerLife], usd_per_second: float
) -> Comparison:
    """What jobs of so many milliseconds each (`cost.gpu_ms`) make of their workers' bill."""
    jobs_s = sum(gpu_ms) / 1e3
    start_s = sum(life.start_s for life in lives)
    run_s = sum(life.run_s for life in lives)
    idle_s = sum(life.idle_s for life in lives)
    billed_s = sum(life.billed_s for life in lives)
    return Comparison(
        jobs_usd=jobs_s * usd_per_second,
        beside_usd=(run_s - jobs_s) * usd_per_second,
        start_usd=start_s * usd_per_second,
        idle_usd=idle_s * usd_per_second,
        rounding_usd=(billed_s - start_s - run_s - idle_s) * usd_per_second,
    )
