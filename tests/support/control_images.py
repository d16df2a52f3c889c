"""Control images of rendered scenes, as jobs carry them, and the images they are judged by."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixpod_tools.tiny.control_scores import control_cases
from pixpod_tools.tiny.controls import CONTROLS, without_shape
from pixpod_tools.tiny.scenes import Scene, draw

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ControlCase:
    """A scene, its rendered image, and a prompt that leaves the shape to the control image."""

    scene: Scene
    seed: int

    @property
    def given(self) -> Pixels:
        return draw(self.scene)

    @property
    def prompt(self) -> str:
        return without_shape(self.scene)

    def control(self, type: str = "canny", **options: Any) -> dict[str, Any]:
        """An entry of `controlnets`."""
        return {"type": type, "image": as_png(self.drawn(type)), **options}

    def drawn(self, type: str = "canny") -> Pixels:
        return CONTROLS[type](self.given, self.scene)

    def job(self, model: str, *controls: dict[str, Any], **given: Any) -> dict[str, Any]:
        """The input of a job with these controls."""
        listed = {"controlnets": list(controls)} if controls else {}
        return {"model": model, "prompt": self.prompt, "seed": self.seed, **listed, **given}


def cases(count: int) -> list[ControlCase]:
    return [ControlCase(scene, seed) for seed, scene in enumerate(control_cases(count))]


def as_png(pixels: Pixels) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def images_of(replies: Sequence[dict[str, Any]]) -> list[Pixels]:
    """The first image of each job; all must have succeeded."""
    assert not [reply["error"] for reply in replies if "error" in reply]
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(reply["images"][0]["data"]))))
        for reply in replies
    ]


def largest_difference(some: Sequence[Pixels], others: Sequence[Pixels]) -> int:
    """The largest difference of levels between images."""
    pairs = zip(some, others, strict=True)
    return max(int(np.abs(one.astype(int) - other).max()) for one, other in pairs)
