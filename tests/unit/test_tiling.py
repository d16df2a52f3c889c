"""Tiles of images: together they are the image, and each sees a margin."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pixpod.engine.execution.tiling import MARGIN_PX, spans

WINDOW_PX = 8
TILES_PX = st.sampled_from([72, 96, 128, 256])


@given(side_px=st.integers(1, 2_000), tile_px=TILES_PX)
def test_tiles_are_the_image_and_see_margins(side_px, tile_px):
    found = spans(side_px, tile_px, WINDOW_PX)
    assert (found[0].kept_begin, found[-1].kept_end) == (0, side_px)
    assert (found[0].begin, found[-1].end) == (0, side_px)
    for span in found:
        assert span.begin % WINDOW_PX == 0
        assert span.begin <= span.kept_begin < span.kept_end <= span.end
        assert span.end - span.begin < tile_px + WINDOW_PX
    for one, other in pairwise(found):
        assert one.kept_end == other.kept_begin
        assert one.end - one.kept_end >= MARGIN_PX
        assert other.kept_begin - other.begin >= MARGIN_PX


@given(side_px=st.integers(1, 250).map(lambda windows: WINDOW_PX * windows), tile_px=TILES_PX)
def test_tiles_of_whole_windows_are_equally_large(side_px, tile_px):
    found = spans(side_px, tile_px, WINDOW_PX)
    assert {span.end - span.begin for span in found} == {min(tile_px, side_px)}
