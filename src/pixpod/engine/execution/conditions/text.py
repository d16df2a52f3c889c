"""Text as a condition: its length is checked, its embeddings are cached."""

from collections.abc import Callable, Sequence
from dataclasses import astuple

from pixpod.engine.execution.condition_cache import ConditionCache, cache_key
from pixpod.engine.execution.conditions.base import Condition
from pixpod.engine.execution.pipelines import Arguments, TokenLimit, calls_of
from pixpod.engine.model import LoadedModel, Pipeline
from pixpod.errors import InvalidInput, Problem
from pixpod.job import GenerationRequest
from pixpod.methods import StageName, uses_negative_prompt

TextChanges = Callable[[LoadedModel, GenerationRequest], Sequence[object]]
"""Returns what changes a request's embeddings beside its texts, as JSON."""


def _no_changes(model: LoadedModel, request: GenerationRequest) -> Sequence[object]:
    return ()


class TextCondition(Condition):
    """Embeddings of a request's prompts."""

    stage = StageName.TEXT_ENCODE

    def __init__(self, cache: ConditionCache, changes: TextChanges = _no_changes) -> None:
        self._cache = cache
        self._changes = changes

    def check(self, model: LoadedModel, request: GenerationRequest) -> list[str]:
        """Return warnings for texts that are cut. Raises InvalidInput unless cutting is allowed.

        Encoders with the same tokenizer give the same warning, which is returned once.
        """
        problems, warnings = [], []
        calls = calls_of(model.spec.family)
        for limit in calls.token_limits(model.tokenizers, request):
            num_tokens = limit.count_tokens()
            if num_tokens <= limit.limit:
                continue
            if request.text.truncate or not limit.is_hard:
                warnings.append(_truncated(limit, num_tokens))
            else:
                problems.append(_too_long(limit, num_tokens))
        if problems:
            raise InvalidInput(list(dict.fromkeys(problems)))
        return list(dict.fromkeys(warnings))

    def find(self, model: LoadedModel, request: GenerationRequest) -> Arguments | None:
        return self._cache.get(self._key(model, request), model.device)

    def compute(self, model: LoadedModel, pipe: Pipeline, request: GenerationRequest) -> Arguments:
        arguments = calls_of(model.spec.family).encode_text(pipe, request, model.device)
        self._cache.put(self._key(model, request), arguments)
        return arguments

    def _key(self, model: LoadedModel, request: GenerationRequest) -> bytes:
        return text_key(model, request, self._changes(model, request))


def text_key(
    model: LoadedModel, request: GenerationRequest, changes: Sequence[object] = ()
) -> bytes:
    """Return the same key for requests with the same embeddings."""
    return cache_key(
        "text",
        model,
        *astuple(request.prompts),
        request.text.max_sequence_length,
        uses_negative_prompt(model.spec.family, request.sampling),
        *changes,
    )


def _truncated(limit: TokenLimit, num_tokens: int) -> str:
    also = "" if limit.is_hard else " by CLIP; T5 reads it as well"
    return f"{limit.field}: only {limit.limit} of its {num_tokens} tokens are read{also}"


def _too_long(limit: TokenLimit, num_tokens: int) -> Problem:
    return Problem(
        field=limit.field,
        value=f"{num_tokens} tokens",
        accepted=f"at most {limit.limit} tokens",
        hint="shorten it, or set on_long_prompt to truncate",
    )
