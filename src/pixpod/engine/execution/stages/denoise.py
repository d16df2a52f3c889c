"""Denoises latents, by the pipeline's own loop."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch

from pixpod.engine.device import Pace
from pixpod.engine.execution.batch import Batch, Row
from pixpod.engine.execution.conditions import AfterStep, Condition
from pixpod.engine.execution.pipelines import Arguments, ArrangingCalls
from pixpod.engine.execution.stages.base import StageContext
from pixpod.engine.execution.step_cache import step_caching
from pixpod.engine.model import Pipeline
from pixpod.job import GenerationRequest
from pixpod.methods import StageName, num_steps


class DenoiseStage:
    """Gives each row its latents.

    `name` and `part` are the stage's, the latter among the calls of a method.
    """

    name = StageName.DENOISE
    part = 0

    def __init__(self, conditions: Sequence[Condition] = ()) -> None:
        self._conditions = conditions

    def prepare(self, batch: Batch) -> bool:
        return bool(batch.rows)

    def run(self, batch: Batch, context: StageContext) -> None:
        def attempt(rows: Sequence[Row]) -> None:
            requests = [self.request_of(row.state.item.request) for row in rows]
            self._denoise(batch, context.pipe_for(batch, requests), rows)

        width, height = batch.method.size
        context.run_within_memory(batch, f"an image of {width}x{height}", batch.buckets(), attempt)

    def request_of(self, request: GenerationRequest) -> GenerationRequest:
        """Return the part of a request that this stage runs."""
        return request

    def generator_of(self, row: Row) -> torch.Generator:
        """Return the source of a row's noise; another attempt gets an equal one."""
        return torch.Generator("cpu").manual_seed(row.seed)

    def arguments_of(self, row: Row) -> Arguments:
        """Return tensors whose first dimension is 1, and what is the same for all rows."""
        return row.state.arguments[self.name]

    def _denoise(self, batch: Batch, pipe: Pipeline, rows: Sequence[Row]) -> None:
        model, request = batch.model, self.request_of(batch.request)
        calls = batch.method.calls[self.part :]
        pipe.scheduler = model.scheduler(request.sampling.scheduler)
        changes = [each.after_step(batch, pipe, rows, sum(calls)) for each in self._conditions]
        generators = [self.generator_of(row) for row in rows]
        arguments = _stack([self.arguments_of(row) for row in rows])
        for condition in self._conditions:
            arguments = condition.arrange(batch, pipe, arguments)
        if isinstance(batch.calls, ArrangingCalls):
            arguments = batch.calls.arrange(pipe, arguments)
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
                generator=generators,
                output_type="latent",
                callback_on_step_end=_step_callback(
                    batch, len(rows), calls, list(filter(None, changes))
                ),
            ).images
        if skipped.num_calls:
            batch.warnings.append(f"turbo: {skipped.num_calls} denoiser calls were skipped")
        for index, row in enumerate(rows):
            row.latents = latents[index : index + 1]
            row.generator = generators[index]
            row.num_calls += calls[0]


def _stack(rows: Sequence[Arguments]) -> Arguments:
    """Join the tensors and lists of all rows; other arguments are the same for all of them."""
    return {name: _join([row[name] for row in rows]) for name in rows[0]}


def _join(values: Sequence[Any]) -> Any:  # noqa: ANN401 - the types of arguments differ
    if isinstance(values[0], torch.Tensor):
        return torch.cat(list(values))
    return [*chain(*values)] if isinstance(values[0], list) else values[0]


def _step_callback(
    batch: Batch, num_rows: int, calls: Sequence[int], changes: Sequence[AfterStep]
) -> Callable[..., dict[str, Any]]:
    """Return what the pipeline calls after each denoiser call.

    It reports calls of the whole batch, so that progress only advances where it is split. `calls`
    are those of this stage and of later ones.
    """
    pace = Pace(batch.model.device)
    num_done = batch.num_calls

    def on_step_end(
        pipe: Pipeline, step: int, timestep: object, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        pace.step()
        batch.on_step((num_done + (step + 1) * num_rows) // len(batch.rows))
        for change in changes:
            tensors["latents"] = change(step, tensors["latents"])
        if step + 1 == calls[0] < sum(calls):
            # diffusers' `denoising_end` is a share of timesteps, and often a step off
            pipe._interrupt = True
        return tensors

    return on_step_end
