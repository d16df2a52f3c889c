"""Scenes that the tiny checkpoints can generate: one flat shape on one flat background.

Defines scenes, renders them, and decides which combinations are held out of all training.
Needs numpy only; knows nothing about models or captions in training (see `captions`).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""An image as height x width x 3, RGB, 0..255."""

Choice = TypeVar("Choice")


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    PURPLE = "purple"
    ORANGE = "orange"
    WHITE = "white"
    BLACK = "black"

    @property
    def rgb(self) -> tuple[int, int, int]:
        return PALETTE[self]


PALETTE = {
    Colour.RED: (215, 38, 38),
    Colour.GREEN: (38, 160, 65),
    Colour.BLUE: (45, 85, 220),
    Colour.YELLOW: (248, 222, 55),
    Colour.PURPLE: (140, 60, 185),
    Colour.ORANGE: (243, 130, 28),
    Colour.WHITE: (246, 246, 246),
    Colour.BLACK: (18, 18, 18),
}
"""Flat colours, at least 95 apart from each other (euclidean, 0..255)."""


class Shape(StrEnum):
    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    CROSS = "cross"


class Size(StrEnum):
    SMALL = "small"
    MEDIUM = ""
    LARGE = "large"

    @property
    def radius_range(self) -> tuple[float, float]:
        """Smallest and largest radius, as a share of the image's shorter side."""
        return _RADIUS_RANGES[self]


_RADIUS_RANGES = {Size.SMALL: (0.15, 0.20), Size.MEDIUM: (0.24, 0.29), Size.LARGE: (0.34, 0.38)}


class Position(StrEnum):
    CENTRE = ""
    LEFT = "on the left"
    RIGHT = "on the right"
    TOP = "at the top"
    BOTTOM = "at the bottom"

    @property
    def direction(self) -> tuple[int, int]:
        """Direction of the shape from the middle: (x, y), y growing downwards."""
        return _DIRECTIONS[self]


_DIRECTIONS = {
    Position.CENTRE: (0, 0),
    Position.LEFT: (-1, 0),
    Position.RIGHT: (1, 0),
    Position.TOP: (0, -1),
    Position.BOTTOM: (0, 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The content of an image as its caption states it.

    Raises ValueError if the shape could not be seen.
    """

    colour: Colour
    shape: Shape
    background: Colour
    size: Size = Size.MEDIUM
    position: Position = Position.CENTRE

    def __post_init__(self) -> None:
        if self.colour is self.background:
            raise ValueError(f"background must differ from the colour of the shape: {self.colour}")

    @property
    def subject(self) -> str:
        """The shape alone, without article: "small red circle at the top"."""
        return " ".join(filter(None, (self.size, self.colour, self.shape, self.position)))

    @property
    def caption(self) -> str:
        """The canonical caption: "a small red circle at the top on a blue background"."""
        return f"{with_article(self.subject)} on {with_article(self.background)} background"


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def is_held_out(scene: Scene) -> bool:
    """Return whether this colour, shape and background are held out of all training data.

    The scenes held out are a diagonal through the cube of combinations: 46 of 224. Every pair
    (colour and shape, colour and background, shape and background) still occurs in training.
    """
    colours, shapes = list(Colour), list(Shape)
    return (
        colours.index(scene.colour)
        + 2 * colours.index(scene.background)
        + 3 * shapes.index(scene.shape)
    ) % 5 == 0


def grid_scenes() -> tuple[Scene, ...]:
    """Return all 224 combinations of colour, shape and background, in a fixed order."""
    return tuple(
        Scene(colour=colour, shape=shape, background=background)
        for shape, colour, background in itertools.product(Shape, Colour, Colour)
        if colour is not background
    )


def pick(rng: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    return choices[int(rng.integers(len(choices)))]


_SIZE_DRAWS = (Size.MEDIUM, Size.MEDIUM, Size.SMALL, Size.LARGE)
_POSITION_DRAWS = (*(Position.CENTRE,) * 4, *tuple(Position)[1:])


def sample_training_scene(rng: np.random.Generator) -> Scene:
    """Return a random scene that is not held out; half are of medium size, half (independently)
    centred.
    """
    while True:
        colour, background = pick(rng, tuple(Colour)), pick(rng, tuple(Colour))
        if colour is background:
            continue
        scene = Scene(
            colour=colour,
            shape=pick(rng, tuple(Shape)),
            background=background,
            size=pick(rng, _SIZE_DRAWS),
            position=pick(rng, _POSITION_DRAWS),
        )
        if not is_held_out(scene):
            return scene


def draw(
    scene: Scene, *, width: int = 64, height: int = 64, rng: np.random.Generator | None = None
) -> Pixels:
    """Render a scene with soft edges; `rng` varies radius and centre as far as its words allow."""
    short = min(width, height)
    low, high = scene.size.radius_range
    radius = float(rng.uniform(low, high)) if rng else (low + high) / 2
    centre = []
    for side, direction in zip((width, height), scene.position.direction, strict=True):
        # As far out as the words say, but never over the edge: the border shows the background.
        room = 0.5 - radius * short / side
        jitter = float(rng.uniform(-1, 1)) * min(0.03, room) if rng else 0.0
        centre.append((0.5 + direction * min(0.22, room - 0.02) + jitter) * side)
    ys, xs = np.mgrid[0:height, 0:width] + 0.5
    distance = _signed_distance(scene.shape, xs - centre[0], ys - centre[1], radius * short)
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    pixels = cover * np.array(scene.colour.rgb) + (1 - cover) * np.array(scene.background.rgb)
    return np.asarray(np.rint(pixels), dtype=np.uint8)


def _signed_distance(
    shape: Shape, x: NDArray[np.float64], y: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """Return the distance in pixels to the outline, negative inside; a box centres its shape."""
    match shape:
        case Shape.CIRCLE:
            return np.asarray(np.hypot(x, y) - radius)
        case Shape.SQUARE:
            return np.maximum(np.abs(x), np.abs(y)) - 0.94 * radius
        case Shape.CROSS:
            upright = np.maximum(np.abs(x) - radius / 3, np.abs(y) - radius)
            level = np.maximum(np.abs(x) - radius, np.abs(y) - radius / 3)
            return np.minimum(upright, level)
        case Shape.TRIANGLE:
            slope, half_height = 1.9, 0.95 * radius
            side = (np.abs(x) * slope - (y + half_height)) / math.hypot(slope, 1.0)
            return np.maximum(side, y - half_height)
