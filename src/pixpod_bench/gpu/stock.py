"""diffusers as its documentation says, on the same random weights: what ours is compared with.

bfloat16 or float16, `pipe(prompt=...)`, PIL images. COMPILED: FLUX by `compile_repeated_blocks`,
UNets by `torch.compile` with channels-last tensors, both with `fullgraph=True` and otherwise the
defaults ("Accelerate inference" and "Compile and offloading" in diffusers' guide; `max-autotune`,
which it also names, takes minutes to compile and is left out).
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from pixpod.catalog import Family
from pixpod.engine.loading.pipelines import LoadedModel, Pipeline
from pixpod.job import GenerationRequest
from pixpod_bench.drawing_times import Drawing, synchronize


class StockDrawer:
    """A plain pipeline whose stages are timed: each ends when the device is done with it."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._text_ms = 0.0
        self._encode = model.pipe.encode_prompt
        model.pipe.encode_prompt = self._timed_encode

    def draw(self, request: GenerationRequest) -> Drawing:
        pipe, device = self.model.pipe, self.model.device
        last_step_at = started = time.perf_counter()

        def on_step_end(
            pipe: Pipeline, step: int, timestep: object, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            nonlocal last_step_at
            if step == pipe.num_timesteps - 1:
                synchronize(device)
                last_step_at = time.perf_counter()
            return tensors

        images = pipe(**_arguments(request), callback_on_step_end=on_step_end).images
        ended = time.perf_counter()
        return Drawing(
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
    _COMPILE[model.spec.family](model.pipe)


def _compile_flux(pipe: Pipeline) -> None:
    pipe.transformer.compile_repeated_blocks(fullgraph=True)


def _compile_unet(pipe: Pipeline) -> None:
    for module in (pipe.unet, pipe.vae):
        module.to(memory_format=torch.channels_last)
    pipe.unet.compile(fullgraph=True)


_COMPILE: dict[Family, Callable[[Pipeline], None]] = {
    Family.FLUX: _compile_flux,
    Family.SDXL: _compile_unet,
    Family.SD15: _compile_unet,
}


def _arguments(request: GenerationRequest) -> dict[str, object]:
    """A request as a user of diffusers writes it; None is left to the pipeline's default."""
    arguments: dict[str, object] = {
        "prompt": request.prompt,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.num_inference_steps,
        "num_images_per_prompt": len(request.seeds),
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds],
        "guidance_scale": request.guidance_scale,
        "max_sequence_length": request.max_sequence_length,
    }
    return {name: value for name, value in arguments.items() if value is not None}
