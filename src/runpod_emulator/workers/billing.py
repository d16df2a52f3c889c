"""Costs of workers and jobs, from a worker's metered life and the GPU prices in `prices.toml`.

It knows no clock and no process. An unknown GPU is no error: its price, and every cost, is None.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from importlib import resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars per second of one GPU; `active` is None if no such rate is published."""

    flex: float
    active: float | None = None


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices by GPU, named as in `gpuTypeIds`."""

    by_gpu: Mapping[str, Price]

    def usd_per_second(
        self, gpu: str, *, gpu_count: int = 1, is_active: bool = False
    ) -> float | None:
        """Return the price of a whole worker; None for an unknown GPU.

        `is_active` is for the workers that `workers_min` keeps: they cost the active rate, or
        the flex rate if there is no other.
        """
        price = self.by_gpu.get(gpu)
        if price is None:
            return None
        rate = price.active if is_active and price.active is not None else price.flex
        return gpu_count * rate


def load_prices() -> Prices:
    """Return the prices that are part of the emulator."""
    file = resources.files("runpod_emulator.workers").joinpath("prices.toml")
    text = file.read_text(encoding="utf-8")
    groups = tomllib.loads(text)["prices"]
    return Prices(
        {
            gpu: Price(flex=group["flex"], active=group.get("active"))
            for group in groups
            for gpu in group["gpus"]
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A worker's life so far, to the microsecond, and the whole seconds that it costs.

    The platform bills from start to full stop, rounded up: `billed_s` is rounded once, over the
    whole life. `start_s` ends when the worker first polls for jobs.
    """

    start_s: float
    run_s: float
    idle_s: float
    billed_s: int


class _Part(Enum):
    START = auto()
    RUN = auto()
    IDLE = auto()


class Meter:
    """Measures one worker from the start of its process to its end.

    `started_at` None is for a worker without a process, throttled or never started: it costs
    nothing. Time that goes back counts as no time, and nothing counts after `stopped`. Whole
    microseconds are added up, so that rounding errors never cost a second.
    """

    def __init__(self, started_at: float | None) -> None:
        self._spent_us = dict.fromkeys(_Part, 0)
        self._part = _Part.START
        self._since_us = None if started_at is None else _to_us(started_at)

    def ready(self, now: float) -> None:
        """Note that the worker polls for jobs; only the first call has an effect."""
        if self._part is _Part.START:
            self._enter(_Part.IDLE, now)

    def busy(self, now: float) -> None:
        """Note that the worker has at least one job."""
        self._enter(_Part.RUN, now)

    def idle(self, now: float) -> None:
        """Note that the worker has no job left."""
        self._enter(_Part.IDLE, now)

    def stopped(self, now: float) -> None:
        """Note that the worker's process has ended."""
        self._enter(self._part, now)
        self._since_us = None

    def bill(self, now: float) -> Bill:
        spent_us = dict(self._spent_us)
        spent_us[self._part] += self._open_us(now)
        return Bill(
            start_s=spent_us[_Part.START] / 1e6,
            run_s=spent_us[_Part.RUN] / 1e6,
            idle_s=spent_us[_Part.IDLE] / 1e6,
            billed_s=-(-sum(spent_us.values()) // 1_000_000),
        )

    def _enter(self, part: _Part, now: float) -> None:
        if self._since_us is None:
            return
        open_us = self._open_us(now)
        self._spent_us[self._part] += open_us
        self._since_us += open_us
        self._part = part

    def _open_us(self, now: float) -> int:
        return 0 if self._since_us is None else max(0, _to_us(now) - self._since_us)


def cost_usd(billed_s: int, usd_per_second: float | None) -> float | None:
    """Return the cost of a worker; None without a price."""
    return None if usd_per_second is None else round(billed_s * usd_per_second, 8)


def job_cost_usd(execution_ms: int, usd_per_second: float | None) -> float | None:
    """Return the cost of a job's own execution time, without the worker's start, idle time and
    rounding; None without a price.

    Jobs that a worker runs at the same time are each counted in full.
    """
    return None if usd_per_second is None else round(execution_ms / 1000 * usd_per_second, 8)


def _to_us(at: float) -> int:
    return round(at * 1_000_000)
