"""Targets for an H100 at 1024 px, and the best figure measured for each."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pixpod.families import Precision
from pixpod_bench.figures import Verdict
from pixpod_bench.gpu.results import Entry, MemoryRow, Result, Row
from pixpod_bench.gpu.scenarios import Mode, Side

GPU = "H100"


_Find = Callable[[Result], float | None]


@dataclass(frozen=True, slots=True)
class Target:
    """A target. `find` returns a result's figure in `unit`, else None. The best figure counts."""

    name: str
    unit: str
    limit: float
    find: _Find
    at_least: bool = False


def judge(entries: Iterable[Entry]) -> list[Verdict]:
    """Judge all targets. Figures of other GPUs count too: the report names the GPU."""
    entries = list(entries)
    return [_judge(target, entries) for target in TARGETS]


def _judge(target: Target, entries: Iterable[Entry]) -> Verdict:
    found = [
        (value, entry.scenario)
        for entry in entries
        if (value := target.find(entry.result)) is not None
    ]
    choose = max if target.at_least else min
    value, scenario = choose(found) if found else (None, "")
    return Verdict(
        target=target.name,
        subject=scenario,
        value=value,
        limit=target.limit,
        at_least=target.at_least,
        unit=target.unit,
    )


def _seconds(model: str, steps: int, *, has_guidance: bool = True) -> _Find:
    """Find the time of one image at 1024 px, as it is served."""

    def find(row: Result) -> float | None:
        if isinstance(row, Row) and row.batch_size == 1 and _is_served(row, model, steps):
            return row.total_ms / 1e3 if row.has_guidance == has_guidance else None
        return None

    return find


def _rate(model: str, steps: int) -> _Find:
    """Find the images per second of a batch."""

    def find(row: Result) -> float | None:
        if isinstance(row, Row) and row.batch_size > 1 and _is_served(row, model, steps):
            return row.images_per_second if row.has_guidance else None
        return None

    return find


def _is_served(row: Row, model: str, steps: int) -> bool:
    is_flux = model.startswith("flux")
    return (
        row.side == Side.OURS
        and (row.model, row.num_inference_steps, row.size_px) == (model, steps, 1024)
        and row.mode != Mode.EAGER
        and (row.precision == Precision.FLOAT8_DYNAMIC) == is_flux
    )


def _gigabytes(limit_gib: float | None) -> _Find:
    """Find the GPU memory that two full-size models took."""

    def find(row: Result) -> float | None:
        if not isinstance(row, MemoryRow) or row.limit_gib != limit_gib or not row.driver_bytes:
            return None
        return row.driver_bytes / 1e9

    return find


TARGETS = (
    Target("FLUX.1-dev, 28 steps", "s", 2.6, _seconds("flux-dev", 28)),
    Target("FLUX.1-schnell, 4 steps", "s", 0.4, _seconds("flux-schnell", 4)),
    Target("SDXL, 30 steps with guidance", "s", 1.4, _seconds("sdxl", 30)),
    Target("SDXL, 30 steps, batched", "images/s", 1.2, _rate("sdxl", 30), at_least=True),
    Target("SDXL Lightning, 4 steps", "s", 0.25, _seconds("sdxl", 4, has_guidance=False)),
    Target("FLUX in FP8 and SDXL on one GPU", "GB", 40.0, _gigabytes(None)),
    Target("the same on 24 GB", "GB", 24 * 2**30 / 1e9, _gigabytes(23.5)),
)
"""For comparison: FLUX.1-dev in 28 steps takes 6.6 s in bfloat16 without compilation and 2.97 s at
best with torchao (diffusers-torchao), 2.43 s with kernels written by hand (flux-fp8-api).
"""
