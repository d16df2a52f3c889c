"""Calls of pipelines as the worker's own runner makes them, described as JSON."""

import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import torch

from pixpod.engine.execution.batch import Batch
from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.model_runner import ModelRunner
from pixpod.engine.execution.runnable_model import RunnableModel
from pixpod.engine.execution.stages import DenoiseStage, StageContext
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.model import LoadedModel, Pipeline, Scheduler
from pixpod.engine.scheduling.device_watch import DeviceWatch
from pixpod.engine.scheduling.request_queue import RequestQueue
from pixpod.job import Generation, GenerationRequest
from pixpod.methods import StageName, batch_key_of
from pixpod.timeline import BootTimeline

LIMIT_S = 120


def generate(
    model: LoadedModel, request: GenerationRequest
) -> tuple[Generation, dict[str, object]]:
    """Images of a request from a queue, and the description of the calls that made them."""
    calls: list[dict[str, object]] = []
    stages = {StageName.DENOISE: _LoggedDenoise(calls)}
    runner = ModelRunner(Placement(make_plan((), None)), ConditionCache(0), stages=stages)
    runnable = RunnableModel(model, runner, BootTimeline(time.perf_counter))
    queue = RequestQueue(watch=DeviceWatch(lambda waited_s: None))
    try:
        generation = queue.submit(runnable, request, cancel=threading.Event()).result(LIMIT_S)
    finally:
        queue.stop()
    return generation, {"batch_key": asdict(batch_key_of(request)), "calls": calls}


class _LoggedDenoise(DenoiseStage):
    def __init__(self, calls: list[dict[str, object]]) -> None:
        super().__init__()
        self._calls = calls

    def run(self, batch: Batch, context: StageContext) -> None:
        super().run(batch, replace(context, pipe=_LoggedPipeline(context.pipe, self._calls)))


class _LoggedPipeline:
    """A pipeline in all but its call, which is described before it goes on."""

    def __init__(self, pipe: Pipeline, calls: list[dict[str, object]]) -> None:
        vars(self).update(_pipe=pipe, _calls=calls)

    def __call__(self, **arguments: object) -> object:
        result = self._pipe(**arguments)
        self._calls.append(
            {
                "pipeline": type(self._pipe).__name__,
                "arguments": {name: _describe(value) for name, value in arguments.items()},
                "scheduler": _describe_scheduler(self._pipe.scheduler),
            }
        )
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_pipe"], name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._pipe, name, value)


def _describe(value: object) -> object:
    """Scalars as they are; tensors as format and shape; generators as their seeds."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, torch.Generator):
        return f"{value.device} seed {value.initial_seed()}"
    if isinstance(value, list):
        return [_describe(each) for each in value]
    return "callable" if callable(value) else value


def _describe_scheduler(scheduler: Scheduler) -> dict[str, object]:
    return {
        "class": type(scheduler).__name__,
        "timesteps": _digits(scheduler.timesteps.tolist()),
    }


def _digits(numbers: Iterable[float]) -> list[float]:
    """To 4 digits: the last ones differ between processors."""
    return [float(f"{number:.4g}") for number in numbers]
