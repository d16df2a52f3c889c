"""Denoises latents, by the pipeline's own loop."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from pixpod.engine.device import Pace
from pixpod.engine.execution.batch import Batch, Row
from pixpod.engine.execution.pipelines import Arguments
from pixpod.engine.execution.stages.base import StageContext
from pixpod.engine.execution.step_cache import step_caching
from pixpod.engine.model import Pipeline


class DenoiseStage:
    """Gives each row its latents."""

    def prepare(self, batch: Batch) -> bool:
        return bool(batch.rows)

    def run(self, batch: Batch, context: StageContext) -> None:
        attempt = partial(_denoise, batch, context.pipe)
        width, height = batch.method.size
        context.run_within_memory(batch, f"an image of {width}x{height}", batch.buckets(), attempt)


def _denoise(batch: Batch, pipe: Pipeline, rows: Sequence[Row]) -> None:
    model, sampling = batch.model, batch.request.sampling
    width, height = batch.method.size
    pipe.scheduler = model.scheduler(sampling.scheduler)
    with step_caching(
        model.denoiser,
        model.spec.family.step_cache_blocks,
        batch.request.quality,
        sampling.num_inference_steps,
    ) as skipped:
        latents = pipe(
            **_stack([row.state.arguments for row in rows]),
            **batch.calls.call_arguments(sampling),
            width=width,
            height=height,
            num_inference_steps=sampling.num_inference_steps,
            generator=[torch.Generator("cpu").manual_seed(row.seed) for row in rows],
            output_type="latent",
            callback_on_step_end=_StepCallback(batch, len(rows)),
        ).images
    if skipped.num_calls:
        batch.warnings.append(f"turbo: {skipped.num_calls} denoiser calls were skipped")
    for index, row in enumerate(rows):
        row.latents = latents[index : index + 1]


def _stack(rows: Sequence[Arguments]) -> Arguments:
    """Join the tensors of all rows; what is no tensor is the same for all of them."""
    return {
        name: torch.cat([row[name] for row in rows]) if isinstance(value, torch.Tensor) else value
        for name, value in rows[0].items()
    }


class _StepCallback:
    """Called by the pipeline after each denoiser call.

    Reports calls of the whole batch, so that progress only advances where it is split.
    """

    def __init__(self, batch: Batch, num_rows: int) -> None:
        self._batch = batch
        self._pace = Pace(batch.model.device)
        self._num_rows = num_rows
        self._num_done = sum(row.latents is not None for row in batch.rows)

    def __call__(
        self, pipe: Pipeline, step: int, timestep: object, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        self._pace.step()
        num_calls = self._batch.method.num_calls
        done = self._num_done * num_calls + (step + 1) * self._num_rows
        self._batch.on_step(done // len(self._batch.rows))
        return tensors
