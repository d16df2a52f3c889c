"""What must be reached on an H100 at 1024 px, and whether it was. Knows results only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pixpod.catalog import Precision
from pixpod_bench.results import Entry, MemoryRow, Row
from pixpod_bench.scenarios import Mode, Recipe, Side

CARD = "H100"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`find` gives the figure, in `unit`, or None for another result. The best one counts."""

    name: str
    unit: str
    limit: float
    at_least: bool
    find: Callable[[Entry], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`value` and `is_met` are None if nothing was measured; `ratio` is of value to limit."""

    target: str
    unit: str
    limit: float
    at_least: bool
    value: float | None
    scenario: str | None

    @property
    def is_met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def judge(entries: Sequence[Entry]) -> tuple[Verdict, ...]:
    """All targets; figures of other cards count as measured, and say on which card elsewhere."""
    return tuple(_judge(target, entries) for target in TARGETS)


def _judge(target: Target, entries: Sequence[Entry]) -> Verdict:
    found = {
        entry.scenario: value for entry in entries if (value := target.find(entry)) is not None
    }
    choose = max if target.at_least else min
    best = choose(found, key=lambda name: found[name]) if found else None
    return Verdict(
        target=target.name,
        unit=target.unit,
        limit=target.limit,
        at_least=target.at_least,
        value=found[best] if best else None,
        scenario=best,
    )


def _seconds(
    model: str, steps: int, *, has_guidance: bool = True
) -> Callable[[Entry], float | None]:
    """Of one image at 1024 px, as it is served."""

    def find(entry: Entry) -> float | None:
        row = entry.result
        if not isinstance(row, Row) or not _is_served(row, model, steps):
            return None
        if row.batch != 1 or row.has_guidance != has_guidance:
            return None
        return row.total_ms / 1e3

    return find


def _rate(model: str, steps: int) -> Callable[[Entry], float | None]:
    """Images per second in a batch."""

    def find(entry: Entry) -> float | None:
        row = entry.result
        if not isinstance(row, Row) or not _is_served(row, model, steps) or row.batch == 1:
            return None
        return row.images_per_second if row.has_guidance else None

    return find


def _is_served(row: Row, model: str, steps: int) -> bool:
    is_flux = model.startswith("flux")
    return (
        row.side == Side.OURS
        and (row.model, row.num_inference_steps, row.size_px) == (model, steps, 1024)
        and row.mode != Mode.EAGER
        and row.recipe == Recipe.PER_ROW
        and (row.precision == Precision.FLOAT8_DYNAMIC) == is_flux
    )


def _gigabytes(limit_gib: float | None) -> Callable[[Entry], float | None]:
    """All of the card that two full-size models took."""

    def find(entry: Entry) -> float | None:
        row = entry.result
        if not isinstance(row, MemoryRow) or row.limit_gib != limit_gib or not row.driver_bytes:
            return None
        return row.driver_bytes / 1e9

    return find


TARGETS = (
    Target(
        name="FLUX.1-dev, 28 steps",
        unit="s",
        limit=2.6,
        at_least=False,
        find=_seconds("flux-dev", 28),
    ),
    Target(
        name="FLUX.1-schnell, 4 steps",
        unit="s",
        limit=0.40,
        at_least=False,
        find=_seconds("flux-schnell", 4),
    ),
    Target(
        name="SDXL, 30 steps with guidance",
        unit="s",
        limit=1.4,
        at_least=False,
        find=_seconds("sdxl", 30),
    ),
    Target(
        name="SDXL, 30 steps with guidance, batched",
        unit="images/s",
        limit=1.2,
        at_least=True,
        find=_rate("sdxl", 30),
    ),
    Target(
        name="SDXL Lightning, 4 steps",
        unit="s",
        limit=0.25,
        at_least=False,
        find=_seconds("sdxl", 4, has_guidance=False),
    ),
    Target(
        name="FLUX in FP8 and SDXL on one card",
        unit="GB",
        limit=40.0,
        at_least=False,
        find=_gigabytes(None),
    ),
    Target(
        name="the same on a card of 24 GB",
        unit="GB",
        limit=24 * 2**30 / 1e9,
        at_least=False,
        find=_gigabytes(23.5),
    ),
)
"""On an H100 at 1024 px, one image unless said. For comparison: FLUX.1-dev in 28 steps takes 6.6 s
in bfloat16 without compilation and 2.97 s at best with torchao (diffusers-torchao), 2.43 s with
kernels written by hand (flux-fp8-api).
"""
