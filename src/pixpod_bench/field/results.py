"""What became of each work. No torch."""

from dataclasses import dataclass

from pixpod_bench.field.works import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Medians of a work. `seconds` is for the whole batch, from the request to pixels in host
    memory; `device_ms` what of the card's time is paid for. `weights`: `random` or where they lie.
    """

    work: Work
    weights: str
    precision: str
    repeats: int
    seconds: float
    spread_percent: float
    device_ms: float
    peak_bytes: int | None
    warnings: tuple[str, ...]

    @property
    def images_per_hour(self) -> float:
        return self.work.batch * 3600 / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class NotMeasured:
    """A work without a figure, and why."""

    work: Work
    reason: str
