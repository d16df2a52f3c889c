"""Figures of the users' benchmark, as they could be."""

from pixpod_bench.field.results import Figure
from pixpod_bench.field.works import Work, load_works


def figure_of(work: Work, *, seconds: float, device_ms: float) -> Figure:
    return Figure(
        work=work,
        weights="random",
        precision="float16",
        repeats=3,
        seconds=seconds,
        spread_percent=1.0,
        device_ms=device_ms,
        peak_bytes=2**32,
        warnings=(),
    )


FIGURE = figure_of(load_works(tiny=False)[0], seconds=2.0, device_ms=2000.0)
"""SD 1.5 at 512 px in 50 steps, one image."""
