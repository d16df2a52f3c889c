"""The usual work and what has been published of it; data in `field.toml`. No torch."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

REFERENCE_CARD = "RTX 4090"
"""What most figures were published of: shown where there are none of the user's own card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Square images of one prompt, `batch` of them at once. `scheduler` None is the model's own."""

    model: str
    title: str
    size_px: int
    steps: int
    batch: int
    is_guided: bool = True
    scheduler: str | None = None

    @property
    def name(self) -> str:
        return f"{self.title}, {self.size_px} px, {self.steps} steps, x{self.batch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One figure: `seconds` for the whole batch. `doubt` says why it cannot be right."""

    model: str
    size_px: int
    steps: int
    batch: int
    is_guided: bool
    card: str
    seconds: float
    source: str
    date: str
    doubt: str | None = None
    usd_per_1000: float | None = None

    @property
    def images_per_hour(self) -> float:
        return self.batch * 3600 / self.seconds

    def is_of(self, work: Work) -> bool:
        """Whether model, size, steps and batch are the same."""
        own = (self.model, self.size_px, self.steps, self.batch, self.is_guided)
        return own == (work.model, work.size_px, work.steps, work.batch, work.is_guided)


def load_works(*, tiny: bool) -> tuple[Work, ...]:
    """All works, models in the order of the file."""
    return tuple(
        Work(
            model=row["model"],
            title=row["title"],
            size_px=row["size_px"],
            steps=row["steps"],
            batch=batch,
            is_guided=row.get("guided", True),
            scheduler=row.get("scheduler"),
        )
        for row in _table()["works"]
        for batch in row["batches"]
        if row.get("tiny", False) == tiny
    )


def load_published() -> tuple[Published, ...]:
    return tuple(
        Published(
            model=row["model"],
            size_px=row["size_px"],
            steps=row["steps"],
            is_guided=row.get("guided", True),
            source=row["source"],
            date=row["date"],
            doubt=row.get("doubt"),
            **figure,
        )
        for row in _table()["published"]
        for figure in row["figures"]
    )


def published_of(
    work: Work, published: Sequence[Published], device_name: str
) -> tuple[Published, ...]:
    """Figures of the same work; those of the user's own card first, then the reference's."""
    found = [figure for figure in published if figure.is_of(work)]
    return tuple(
        sorted(
            found,
            key=lambda figure: (
                not is_card(figure.card, device_name),
                figure.card != REFERENCE_CARD,
            ),
        )
    )


def is_card(card: str, device_name: str) -> bool:
    """`RTX 4090` is an NVIDIA GeForce RTX 4090, but an `A10` is no A100, and `L40` no L40S."""
    pattern = rf"(?<![A-Za-z0-9]){re.escape(card)}(?![A-Za-z0-9])"
    return re.search(pattern, device_name) is not None


def _table() -> dict[str, Any]:
    """TOML is untyped, hence Any."""
    text = resources.files("pixpod_bench.field").joinpath("field.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
