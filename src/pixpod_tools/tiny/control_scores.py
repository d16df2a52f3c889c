"""Judges whether images have the shape of their control image, and the colours of their prompt."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pixpod_tools.tiny.checker import MIN_CONTRAST as MIN_MASK_CONTRAST
from pixpod_tools.tiny.checker import Mask, check
from pixpod_tools.tiny.controls import MIN_CONTRAST, contrast
from pixpod_tools.tiny.scenes import Colour, Pixels, Position, Scene, Shape, Size, pick

NUM_CASES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlScores:
    """`overlap` is the mean intersection over union with the given shapes; others are shares."""

    overlap: float
    shape: float
    position: float
    colours: float


def control_cases(count: int = NUM_CASES) -> tuple[Scene, ...]:
    """Return scenes of all shapes and positions whose colours differ enough to have edges."""
    rng = np.random.default_rng(5)
    pairs = [pair for pair in itertools.permutations(Colour, 2) if contrast(*pair) >= MIN_CONTRAST]
    scenes = []
    for index in range(count):
        colour, background = pick(rng, pairs)
        scene = Scene(
            colour=colour,
            shape=tuple(Shape)[index % 4],
            background=background,
            size=(Size.MEDIUM, Size.LARGE)[index % 2],
            position=tuple(Position)[index % 5],
        )
        scenes.append(scene)
    return tuple(scenes)


def score_controls(
    images: Sequence[Pixels], given: Sequence[Pixels], scenes: Sequence[Scene]
) -> ControlScores:
    """Compare images with rendered ones, from which their control images were made."""
    verdicts = [check(image, scene) for image, scene in zip(images, scenes, strict=True)]
    return ControlScores(
        overlap=float(np.mean([overlap(*pair) for pair in zip(images, given, strict=True)])),
        shape=float(np.mean([each.shape for each in verdicts])),
        position=float(np.mean([each.position for each in verdicts])),
        colours=float(np.mean([each.colour and each.background for each in verdicts])),
    )


def overlap(image: Pixels, given: Pixels) -> float:
    """Return the intersection over union of the shapes of two images."""
    masks = shape_mask(image), shape_mask(given)
    return float((masks[0] & masks[1]).sum() / max(1, (masks[0] | masks[1]).sum()))


def shape_mask(pixels: Pixels) -> Mask:
    """Return where an image differs from the colour of its border."""
    values = pixels.astype(np.float64)
    border = np.concatenate([values[:2].reshape(-1, 3), values[-2:].reshape(-1, 3)])
    distance = np.linalg.norm(values - np.median(border, axis=0), axis=-1)
    return np.asarray(distance > max(distance.max() / 2, MIN_MASK_CONTRAST))
