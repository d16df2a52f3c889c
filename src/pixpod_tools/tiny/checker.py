"""Recognises colours, shape, position and size in an image.

A few dozen lines of numpy instead of a classifier, so that tests and the demo can check whether an
image shows what its caption says. Knows nothing about models.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixpod_tools.tiny.scenes import PALETTE, Colour, Pixels, Position, Scene, Shape, Size

MAX_COLOUR_DISTANCE = 60.0
"""Largest distance to a palette colour at which it is recognised; the closest pair is 95 apart."""
MIN_CONTRAST = 50.0
"""Least distance to the background of a pixel that belongs to a shape."""
MIN_OVERLAP = 0.7
"""Intersection over union with the best template below which nothing is recognised.

Rendered scenes score 0.80 or more, small crosses least. Noise fills its box like a square and is
recognised by its colours instead.
"""
MIN_OFFSET = 0.05
"""Least distance of the shape's middle from the image's, as a share of that side."""
MAX_SMALL_EXTENT, MIN_LARGE_EXTENT = 0.22, 0.31
"""Half the longer side of the shape's box, as a share of the image's shorter side."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The recognised content of an image. `None` stands for something that is not recognised.

    `overlap` is the intersection over union with the shape's template; `x`, `y` is the middle of
    the shape's box from -0.5 to 0.5, relative to the middle of the image, y growing downwards.
    """

    background: Colour | None
    colour: Colour | None = None
    shape: Shape | None = None
    overlap: float = 0.0
    x: float = 0.0
    y: float = 0.0
    extent: float = 0.0

    @property
    def size(self) -> Size:
        if self.extent < MAX_SMALL_EXTENT:
            return Size.SMALL
        return Size.LARGE if self.extent > MIN_LARGE_EXTENT else Size.MEDIUM

    def lies(self, position: Position) -> bool:
        """Return whether the shape is clearly on that side; for the centre, whether on no side."""
        dx, dy = position.direction
        if position is Position.CENTRE:
            return max(abs(self.x), abs(self.y)) < 2 * MIN_OFFSET
        return self.x * dx + self.y * dy > MIN_OFFSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The parts of a caption that an image shows."""

    background: bool
    colour: bool
    shape: bool
    size: bool
    position: bool
    sighting: Sighting

    @property
    def is_right(self) -> bool:
        """True if background, colour and shape are right. Size and position count separately."""
        return self.background and self.colour and self.shape


def check(pixels: Pixels, scene: Scene) -> Verdict:
    """Compare an image (height x width x 3, uint8) with the scene it should show."""
    seen = recognise(pixels)
    return Verdict(
        background=seen.background is scene.background,
        colour=seen.colour is scene.colour,
        shape=seen.shape is scene.shape,
        size=seen.shape is not None and seen.size is scene.size,
        position=seen.shape is not None and seen.lies(scene.position),
        sighting=seen,
    )


def recognise(pixels: Pixels) -> Sighting:
    """Recognise the content of an image, without knowing what it should show."""
    height, width, _ = pixels.shape
    values = pixels.astype(np.float64)
    background = np.median(_border(values), axis=0)
    contrast = np.linalg.norm(values - background, axis=-1)
    strongest = float(np.percentile(contrast, 98.5))  # the smallest cross covers 4 %
    mask = _without_specks(contrast > strongest / 2)
    if strongest < MIN_CONTRAST or not mask.any():
        return Sighting(background=_nearest_colour(background))
    inside = np.median(values[contrast > 0.8 * strongest], axis=0)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    shape, overlap = _best_shape(mask[top:bottom, left:right])
    return Sighting(
        background=_nearest_colour(background),
        colour=_nearest_colour(inside),
        shape=shape,
        overlap=overlap,
        x=float(left + right) / 2 / width - 0.5,
        y=float(top + bottom) / 2 / height - 0.5,
        extent=float(max(bottom - top, right - left)) / 2 / min(height, width),
    )


def _border(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the outermost two pixels of each side, as a list of colours."""
    edges = (values[:2], values[-2:], values[:, :2], values[:, -2:])
    return np.concatenate([edge.reshape(-1, 3) for edge in edges])


def _without_specks(mask: Mask) -> Mask:
    """Set each pixel to the majority of the nine around it: single ones would widen the box."""
    height, width = mask.shape
    padded = np.pad(mask.astype(np.int8), 1)
    shifts = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.asarray(np.sum(shifts, axis=0) >= 5)


def _nearest_colour(value: NDArray[np.float64]) -> Colour | None:
    distances = {colour: float(np.linalg.norm(value - rgb)) for colour, rgb in PALETTE.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] < MAX_COLOUR_DISTANCE else None


def _best_shape(crop: Mask) -> tuple[Shape | None, float]:
    overlaps = {shape: _overlap(crop, _template(shape, *crop.shape)) for shape in Shape}
    best = max(overlaps, key=overlaps.__getitem__)
    return (best if overlaps[best] >= MIN_OVERLAP else None), overlaps[best]


def _overlap(crop: Mask, template: Mask) -> float:
    return float((crop & template).sum() / (crop | template).sum())


def _template(shape: Shape, height: int, width: int) -> Mask:
    """Return the mask of a shape that fills a box of that size."""
    ys, xs = np.mgrid[0:height, 0:width]
    x, y = (xs + 0.5) / width * 2 - 1, (ys + 0.5) / height * 2 - 1
    match shape:
        case Shape.CIRCLE:
            return np.asarray(x**2 + y**2 <= 1)
        case Shape.SQUARE:
            return np.ones((height, width), dtype=np.bool_)
        case Shape.CROSS:
            return np.asarray((np.abs(x) < 1 / 3) | (np.abs(y) < 1 / 3))
        case Shape.TRIANGLE:
            return np.asarray(np.abs(x) <= (y + 1) / 2)
