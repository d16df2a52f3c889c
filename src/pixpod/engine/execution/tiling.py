"""Parts of images that a model sees one by one, so that memory does not grow with images."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

MARGIN_PX = 32
"""Pixels beside those that are kept which a model sees as well. With Swin2SR in its published
layout and random weights, 24 are enough for results that differ by at most one level.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Pixels of one side: those that are seen, and the part of them that is kept."""

    begin: int
    end: int
    kept_begin: int
    kept_end: int


def spans(side_px: int, tile_px: int, window_px: int) -> list[Span]:
    """Divide a side: what is kept of each span ends where that of the next begins.

    Spans begin at multiples of `window_px`, as `tile_px` has to be, so that a model's windows are
    those that it has in the whole image. Neighbours have at least 2 * MARGIN_PX in common.
    """
    seen = list(_seen(side_px, tile_px, window_px))
    cuts = [0, *((end + begin) // 2 for (_, end), (begin, _) in pairwise(seen)), side_px]
    return [
        Span(begin=begin, end=end, kept_begin=kept_begin, kept_end=kept_end)
        for (begin, end), (kept_begin, kept_end) in zip(seen, pairwise(cuts), strict=True)
    ]


def _seen(side_px: int, tile_px: int, window_px: int) -> Iterator[tuple[int, int]]:
    step_px = (tile_px - 2 * MARGIN_PX) // window_px * window_px
    assert step_px > 0, "a tile is larger than its margins"
    for begin in range(0, max(1, side_px - 2 * MARGIN_PX), step_px):
        if begin + tile_px >= side_px:
            last = max(0, side_px - tile_px)
            yield last - last % window_px, side_px
            return
        yield begin, begin + tile_px
