"""Figures that others have published for the same work; data in `published.toml`. No torch."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from pixpod.gpus import find_gpu
from pixpod_bench.gpu.results import Row

REFERENCE_GPU = "RTX 4090"
"""The GPU with most published figures, which are shown if there are none for the measured GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One figure: `seconds` for the whole batch. `doubt` says why it cannot be right."""

    model: str
    size_px: int
    steps: int
    batch: int
    card: str
    seconds: float
    source: str
    date: str
    guided: bool = True
    doubt: str | None = None
    usd_per_1000: float | None = None

    def is_of(self, row: Row) -> bool:
        """Return whether model, size, steps, batch size and guidance are the same."""
        own = (self.model, self.size_px, self.steps, self.batch, self.guided)
        work = (row.model, row.size_px, row.num_inference_steps, row.batch_size, row.has_guidance)
        return own == work


@cache
def load_published() -> tuple[Published, ...]:
    files = resources.files("pixpod_bench.gpu")
    table = tomllib.loads(files.joinpath("published.toml").read_text(encoding="utf-8"))
    return tuple(
        Published(**{name: value for name, value in row.items() if name != "figures"}, **figure)
        for row in table["published"]
        for figure in row["figures"]
    )


def published_of(row: Row, device_name: str) -> Sequence[Published]:
    """Return figures of the same work: those of this GPU first, then those of REFERENCE_GPU."""
    return sorted(
        (figure for figure in load_published() if figure.is_of(row)),
        key=lambda figure: (not _is_same(figure.card, device_name), figure.card != REFERENCE_GPU),
    )


def _is_same(name: str, device_name: str) -> bool:
    gpu = find_gpu(name)
    return gpu is not None and gpu == find_gpu(device_name)
