"""Denoises latents, by the pipeline's own loop."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pixpod.engine.device import Pace
from pixpod.engine.execution.batch import Batch, Row
from pixpod.engine.execution.conditions import AfterStep, Condition
from pixpod.engine.execution.pipelines import Arguments
from pixpod.engine.execution.stages.base import StageContext
from pixpod.engine.execution.step_cache import step_caching
from pixpod.engine.model import Pipeline
from pixpod.methods import num_steps


class DenoiseStage:
    """Gives each row its latents."""

    def __init__(self, conditions: Sequence[Condition] = ()) -> None:
        self._conditions = conditions

    def prepare(self, batch: Batch) -> bool:
        return bool(batch.rows)

    def run(self, batch: Batch, context: StageContext) -> None:
        def attempt(rows: Sequence[Row]) -> None:
            pipe = context.pipe_for(batch, [row.state.item.request for row in rows])
            _denoise(batch, pipe, self._conditions, rows)

        width, height = batch.method.size
        context.run_within_memory(batch, f"an image of {width}x{height}", batch.buckets(), attempt)


def _denoise(
    batch: Batch, pipe: Pipeline, conditions: Sequence[Condition], rows: Sequence[Row]
) -> None:
    model, request = batch.model, batch.request
    pipe.scheduler = model.scheduler(request.sampling.scheduler)
    changes = [each.after_step(batch, pipe, rows) for each in conditions]
    arguments = _stack([row.state.arguments for row in rows])
    for condition in conditions:
        arguments = condition.arrange(batch, pipe, arguments)
    with step_caching(
        getattr(pipe, model.spec.family.denoiser),
        model.spec.family.step_cache_blocks,
        request.quality,
        num_steps(model.spec.family, request.sampling),
    ) as skipped:
        latents = pipe(
            **arguments,
            **batch.calls.call_arguments(request),
            num_inference_steps=request.sampling.num_inference_steps,
            generator=[torch.Generator("cpu").manual_seed(row.seed) for row in rows],
            output_type="latent",
            callback_on_step_end=_step_callback(batch, len(rows), list(filter(None, changes))),
        ).images
    if skipped.num_calls:
        batch.warnings.append(f"turbo: {skipped.num_calls} denoiser calls were skipped")
    for index, row in enumerate(rows):
        row.latents = latents[index : index + 1]


def _stack(rows: Sequence[Arguments]) -> Arguments:
    """Join the tensors of all rows; other arguments are the same for all of them."""
    return {
        name: torch.cat([row[name] for row in rows]) if isinstance(value, torch.Tensor) else value
        for name, value in rows[0].items()
    }


def _step_callback(
    batch: Batch, num_rows: int, changes: Sequence[AfterStep]
) -> Callable[..., dict[str, Any]]:
    """Return what the pipeline calls after each denoiser call.

    It reports calls of the whole batch, so that progress only advances where it is split.
    """
    pace = Pace(batch.model.device)
    num_calls = batch.method.num_calls
    num_done = sum(row.latents is not None for row in batch.rows)

    def on_step_end(
        pipe: Pipeline, step: int, timestep: object, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        pace.step()
        batch.on_step((num_done * num_calls + (step + 1) * num_rows) // len(batch.rows))
        for change in changes:
            tensors["latents"] = change(step, tensors["latents"])
        return tensors

    return on_step_end
