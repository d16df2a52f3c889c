"""A refiner: a second denoiser for the last steps, which reads the texts in its own way."""

from collections.abc import Mapping, Sequence

from pixpod.engine.execution.batch import Batch
from pixpod.engine.execution.condition_cache import ConditionCache, cache_key
from pixpod.engine.execution.conditions.base import Condition
from pixpod.engine.execution.conditions.text import text_key
from pixpod.engine.execution.pipelines import Arguments, calls_of, refiner_calls_of
from pixpod.engine.model import Component, LoadedModel, Pipeline
from pixpod.job import GenerationRequest
from pixpod.methods import StageName, refining


class RefinerCondition(Condition):
    """The denoiser of the last steps, and its embeddings of a request's prompts."""

    stage = StageName.TEXT_ENCODE
    used_by = StageName.REFINE

    def __init__(self, cache: ConditionCache) -> None:
        self._cache = cache

    def request_of(self, request: GenerationRequest) -> GenerationRequest:
        return refining(request) if request.refiner else request

    def components(
        self, model: LoadedModel, stage: StageName, requests: Sequence[GenerationRequest]
    ) -> Mapping[str, Component]:
        if stage is not StageName.REFINE:
            return {}
        return {model.spec.family.denoiser: _denoiser(model, requests[0])}

    def check(self, model: LoadedModel, request: GenerationRequest) -> list[str]:
        if request.refiner is not None:
            refiner_calls_of(model.spec.family).check_fit(model, _denoiser(model, request))
        return []

    def find(self, model: LoadedModel, request: GenerationRequest) -> Arguments | None:
        if request.refiner is None:
            return {}
        return self._cache.get(_key(model, request), model.device)

    def compute(self, model: LoadedModel, pipe: Pipeline, request: GenerationRequest) -> Arguments:
        refiner = refiner_calls_of(model.spec.family)
        if refiner.reads_like_the_model(model, _denoiser(model, request)):
            arguments = calls_of(model.spec.family).encode_text(pipe, request, model.device)
        else:
            arguments = refiner.encode_text(pipe, request, model.device)
        self._cache.put(_key(model, request), arguments)
        return arguments

    def arrange(self, batch: Batch, pipe: Pipeline, arguments: Arguments) -> Arguments:
        refiner_calls_of(batch.model.spec.family).prepare(pipe)
        return arguments


def _key(model: LoadedModel, request: GenerationRequest) -> bytes:
    refiner = refiner_calls_of(model.spec.family)
    key = text_key(model, request)
    if refiner.reads_like_the_model(model, _denoiser(model, request)):
        return key  # of a plain job with these prompts
    return cache_key("refiner text", model, key.hex())


def _denoiser(model: LoadedModel, request: GenerationRequest) -> Component:
    assert request.refiner is not None
    return model.extras[request.refiner.name].module
