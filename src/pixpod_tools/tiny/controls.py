"""Control images of rendered scenes: the edges of a shape, or its filled silhouette."""

from collections.abc import Callable, Mapping

import kornia
import numpy as np
import torch

from pixpod_tools.tiny.scenes import Colour, Pixels, Scene

MIN_CONTRAST = 60.0
"""Least difference in luminance of two colours between which Canny's edges are found reliably."""

Control = Callable[[Pixels, Scene], Pixels]
"""Returns the control image of an image and its scene, in the same form as the image."""


def draw_edges(pixels: Pixels, scene: Scene) -> Pixels:
    """Return white edges on black, by Canny's method with its usual thresholds."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    _, edges = kornia.filters.canny(image)
    return _grey(edges[0, 0].numpy())


def draw_silhouette(pixels: Pixels, scene: Scene) -> Pixels:
    """Return the shape in white on black: how much of each pixel it covers."""
    background = np.array(scene.background.rgb, dtype=np.float64)
    direction = np.array(scene.colour.rgb) - background
    return _grey((pixels - background) @ direction / (direction @ direction))


CONTROLS: Mapping[str, Control] = {"canny": draw_edges, "depth": draw_silhouette}
"""Ways to make control images, by the type of control."""


def contrast(colour: Colour, background: Colour) -> float:
    """Return the difference of two colours in luminance, of 255."""
    return abs(_luminance(colour) - _luminance(background))


def without_shape(scene: Scene) -> str:
    """Return a prompt that leaves shape, size and position to the control image."""
    return f"{scene.colour} on a {scene.background} background"


def _luminance(colour: Colour) -> float:
    return float(np.array(colour.rgb) @ (0.299, 0.587, 0.114))


def _grey(shares: np.ndarray) -> Pixels:
    levels = np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=-1)
