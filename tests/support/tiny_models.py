"""Workers over the tiny models that ship, and their images as pixels."""

import asyncio
import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixpod.bootstrap import build_worker
from pixpod.serving.worker import Worker
from pixpod.settings import Settings
from pixpod_tools.tiny.checker import Verdict, check
from pixpod_tools.tiny.scenes import Scene, grid_scenes, is_held_out

MODELS = ("flux-tiny", "sd35-tiny", "sdxl-tiny", "sd15-tiny")
WITH_EXTRAS = ("flux-tiny", "sdxl-tiny", "sd15-tiny")
"""Models for which the source has ControlNets and LoRAs."""

Pixels = npt.NDArray[np.uint8]


def trained_scenes(count: int = 56) -> list[Scene]:
    """Evenly over the grid, none of the held-out ones."""
    trained = [scene for scene in grid_scenes() if not is_held_out(scene)]
    return [trained[position * len(trained) // count] for position in range(count)]


def build_tiny_worker(output_dir: Path, **environ: str) -> Worker:
    settings = {"PIXPOD_OUTPUT_DIR": str(output_dir), "PIXPOD_DELIVERY": "inline", **environ}
    return build_worker(Settings.from_env(settings))


@dataclass
class Desk:
    """A worker that runs jobs, each time in an event loop of its own."""

    worker: Worker

    def reply(self, job_id: str = "job", **given: Any) -> dict[str, Any]:
        return asyncio.run(self.worker.handle({"id": job_id, "input": given}))

    def replies(self, jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Send all at once, so that they share batches."""

        async def send() -> list[dict[str, Any]]:
            handled = (
                self.worker.handle({"id": f"job-{number}", "input": dict(job)})
                for number, job in enumerate(jobs)
            )
            return await asyncio.gather(*handled)

        return asyncio.run(send())

    def generate(self, model: str, prompt: str, **given: Any) -> list[Pixels]:
        """The images of a job that must succeed."""
        return [
            to_pixels(image)
            for image in _images_of(self.reply(model=model, prompt=prompt, **given))
        ]

    def judge(self, model: str, scenes: Sequence[Scene], **given: Any) -> list[Verdict]:
        """Check how well each scene's caption is obeyed; the seed is the scene's position."""
        jobs = [
            {"model": model, "prompt": scene.caption, "seed": seed, **given}
            for seed, scene in enumerate(scenes)
        ]
        return [
            check(to_pixels(_images_of(reply)[0]), scene)
            for reply, scene in zip(self.replies(jobs), scenes, strict=True)
        ]


def _images_of(reply: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    assert "error" not in reply, reply["error"]
    images: Sequence[Mapping[str, Any]] = reply["images"]
    return images


def to_pixels(image: Mapping[str, Any]) -> Pixels:
    """An inline image of a reply as 8-bit (height, width, 3)."""
    file = io.BytesIO(base64.b64decode(image["data"], validate=True))
    return np.asarray(Image.open(file).convert("RGB"))


def share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
