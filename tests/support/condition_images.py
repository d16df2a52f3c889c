"""Rendered scenes as images of callers, and what a worker makes of them."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixpod_tools.tiny.scenes import Colour, Position, Scene, Shape, draw, grid_scenes, is_held_out

Pixels = npt.NDArray[np.uint8]


def as_base64(pixels: Pixels) -> str:
    """A PNG of RGB or grey pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def source_scenes(count: int) -> list[Scene]:
    """Scenes in other places than the centre, where prompts without a place have theirs."""
    places = tuple(Position)[1:]
    trained = [scene for scene in grid_scenes() if not is_held_out(scene)]
    chosen = [trained[index * len(trained) // count] for index in range(count)]
    return [
        Scene(
            colour=scene.colour,
            shape=scene.shape,
            background=scene.background,
            position=places[index % len(places)],
        )
        for index, scene in enumerate(chosen)
    ]


def other_scene(scene: Scene) -> Scene:
    """A scene of which colour, background and shape differ from those of `scene`."""
    colours, shapes = list(Colour), list(Shape)

    def turned(colour: Colour) -> Colour:
        return colours[(colours.index(colour) + 3) % len(colours)]

    shape = shapes[(shapes.index(scene.shape) + 1) % len(shapes)]
    return Scene(colour=turned(scene.colour), shape=shape, background=turned(scene.background))


def psnr(found: Pixels, expected: Pixels) -> float:
    """In dB of 8-bit levels."""
    error = np.mean((found.astype(float) - expected) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


__all__ = ["as_base64", "draw", "other_scene", "psnr", "source_scenes"]
