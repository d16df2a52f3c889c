"""Styles that the tiny LoRAs add to scenes, and how well an image has them. Needs numpy only."""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from pixpod_tools.tiny.scenes import Colour, Pixels

MARGIN_PX = 8
MAX_DISTANCE = 60.0
"""Distance from a style's colour up to which an image has it; colours are 95 apart."""


class Style(StrEnum):
    """A yellow frame around the image, or a purple bar near its top."""

    FRAME = "frame"
    BAR = "bar"

    @property
    def colour(self) -> Colour:
        return Colour.YELLOW if self is Style.FRAME else Colour.PURPLE


def _area(style: Style, height: int, width: int, inset_px: int = 0) -> NDArray[np.bool_]:
    """Return where a style is, without `inset_px` at its borders."""
    area = np.zeros((height, width), dtype=bool)
    if style is Style.FRAME:
        area[:] = True
        inner = MARGIN_PX - inset_px
        area[inner : height - inner, inner : width - inner] = False
    else:
        begin, side = MARGIN_PX + inset_px, MARGIN_PX + 2 * inset_px
        area[begin : 2 * MARGIN_PX - inset_px, side : width - side] = True
    return area


def add_style(pictures: Pixels, style: Style, share: float = 1.0) -> Pixels:
    """Return a copy of (..., height, width, 3) with a share of a style's colour."""
    styled = pictures.copy()
    *_, height, width, _ = pictures.shape
    area = _area(style, height, width)
    blended = share * np.array(style.colour.rgb) + (1 - share) * pictures[..., area, :]
    styled[..., area, :] = np.rint(blended)
    return styled


def style_distance(picture: Pixels, style: Style) -> float:
    """Return the distance between the colour of a style and the mean of where it would be."""
    height, width, _ = picture.shape
    inside = picture[_area(style, height, width, inset_px=2)]
    return float(np.linalg.norm(inside.mean(axis=0) - np.array(style.colour.rgb)))


def has_style(picture: Pixels, style: Style) -> bool:
    return style_distance(picture, style) < MAX_DISTANCE
