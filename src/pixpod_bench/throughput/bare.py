"""A model's stock pipeline, called as its documentation does."""

import time

import torch

from pixpod.engine.loading.pipelines import silence_libraries
from pixpod_bench.throughput.deployment import TINY_WEIGHTS
from pixpod_bench.throughput.plain_handler import load_pipeline
from pixpod_bench.throughput.workload import TinyJob


class BarePipeline:
    """One of the tiny models."""

    def __init__(self, model: str) -> None:
        silence_libraries()
        self._pipeline = load_pipeline(TINY_WEIGHTS / model)

    def draw(self, job: TinyJob) -> tuple[float, bytes]:
        """Milliseconds, and the pixels."""
        generator = torch.Generator().manual_seed(job.seed)
        began = time.perf_counter()
        image = self._pipeline(**job.arguments(), generator=generator).images[0]
        return (time.perf_counter() - began) * 1e3, image.tobytes()
