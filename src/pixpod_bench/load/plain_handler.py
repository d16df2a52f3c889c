"""A simple worker: stock pipelines, `pipeline(**input)`, base64 in the reply.

Knows nothing of pixpod. With more than one job at a time, a lock lets one of them use a pipeline,
because pipelines have the state of their scheduler.
"""

import asyncio
import base64
import io
import os
import threading
from pathlib import Path
from typing import Any

import runpod
import torch
from diffusers import DiffusionPipeline


class PlainWorker:
    """A worker that keeps all models loaded, and generates one image after the other."""

    def __init__(self, folders: list[Path]) -> None:
        self._lock = threading.Lock()
        self._pipelines = {folder.name: load_pipeline(folder) for folder in folders}

    async def handle(self, job: dict[str, Any]) -> dict[str, Any]:
        return await asyncio.to_thread(self._generate, dict(job["input"]))

    def _generate(self, given: dict[str, Any]) -> dict[str, Any]:
        pipeline = self._pipelines[given.pop("model")]
        generator = torch.Generator().manual_seed(given.pop("seed"))
        with self._lock:
            image = pipeline(**given, generator=generator).images[0]
        file = io.BytesIO()
        image.save(file, "PNG")
        return {"images": [{"data": base64.b64encode(file.getvalue()).decode()}]}


def load_pipeline(folder: Path) -> Any:  # noqa: ANN401 - diffusers has no types
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    concurrency = int(os.environ["BENCH_CONCURRENCY"])
    folders = [Path(folder) for folder in os.environ["BENCH_FOLDERS"].split(os.pathsep)]
    runpod.serverless.start(
        {
            "handler": PlainWorker(folders).handle,
            "concurrency_modifier": lambda _current: concurrency,
        }
    )


if __name__ == "__main__":
    main()
