"""Stock diffusers as its documentation describes, on the same random weights, for comparison.

bfloat16 or float16, `pipe(prompt=...)`, PIL images. COMPILED: FLUX by `compile_repeated_blocks`,
UNets by `torch.compile` with channels-last tensors, both with `fullgraph=True` and otherwise the
defaults ("Accelerate inference" and "Compile and offloading" in diffusers' guide; `max-autotune`,
which it also names, takes minutes to compile and is left out).
"""

import time
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from pixpod.engine.model import LoadedModel, Pipeline
from pixpod.job import GenerationRequest
from pixpod.testing.runners import TimedImages
from pixpod.testing.sample_requests import pipeline_arguments
from pixpod_bench.gpu.memory import synchronize


class StockRunner:
    """Calls a plain pipeline and times its stages; each ends when the device has done it."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._text_ms = 0.0
        self._pipe = model.full_pipeline()
        self._encode = self._pipe.encode_prompt
        self._pipe.encode_prompt = self._timed_encode

    def generate(self, request: GenerationRequest) -> TimedImages:
        pipe, device = self._pipe, self.model.device
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds]
        last_step_at = started = time.perf_counter()

        def on_step_end(
            pipe: Pipeline, step: int, timestep: object, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            nonlocal last_step_at
            if step == pipe.num_timesteps - 1:
                synchronize(device)
                last_step_at = time.perf_counter()
            return tensors

        images = pipe(
            **pipeline_arguments(request), generator=generators, callback_on_step_end=on_step_end
        ).images
        ended = time.perf_counter()
        return TimedImages(
            text_encode_ms=self._text_ms,
            denoise_ms=(last_step_at - started) * 1e3 - self._text_ms,
            decode_ms=(ended - last_step_at) * 1e3,
            total_ms=(ended - started) * 1e3,
            pixels=tuple(image.tobytes() for image in images),
        )

    def _timed_encode(self, *arguments: object, **named: object) -> object:
        started = time.perf_counter()
        encoded = self._encode(*arguments, **named)
        synchronize(self.model.device)
        self._text_ms = (time.perf_counter() - started) * 1e3
        return encoded


def compile_stock(model: LoadedModel) -> None:
    denoiser = model.denoiser
    if isinstance(denoiser, UNet2DConditionModel):
        for module in (denoiser, model.components[model.spec.family.vae]):
            module.to(memory_format=torch.channels_last)
        denoiser.compile(fullgraph=True)
    else:
        denoiser.compile_repeated_blocks(fullgraph=True)
