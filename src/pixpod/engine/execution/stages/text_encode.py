"""Encodes texts: their length is checked, their embeddings are cached."""

from collections.abc import Sequence

from pixpod.engine.execution.batch import Batch, ItemState
from pixpod.engine.execution.pipelines import TokenLimit, calls_of
from pixpod.engine.execution.prompt_cache import PromptCache
from pixpod.engine.execution.stages.base import StageContext
from pixpod.engine.model import LoadedModel
from pixpod.errors import InvalidInput, Problem
from pixpod.job import GenerationRequest


class TextEncodeStage:
    """Gives each item the embeddings of its prompts."""

    def __init__(self, cache: PromptCache) -> None:
        self._cache = cache

    def prepare(self, batch: Batch) -> bool:
        for state in batch.items:
            try:
                state.warnings += check_length(batch.model, state.item.request)
            except InvalidInput as error:
                state.error = error
        return not all([self._find(batch, state) for state in batch.items])

    def run(self, batch: Batch, context: StageContext) -> None:
        def attempt(states: Sequence[ItemState]) -> None:
            for state in states:
                if not self._find(batch, state):  # else an item before has the same text
                    request = state.item.request
                    found = batch.calls.encode_text(context.pipe, request, batch.model.device)
                    self._cache.put(self._cache.key(batch.model, request), found)
                    state.arguments = found

        pending = [[state] for state in batch.items if state.error is None]
        context.run_within_memory(batch, "a text", pending, attempt)

    def _find(self, batch: Batch, state: ItemState) -> bool:
        """Return whether nothing is left to compute: the item has failed or was cached."""
        if state.error is not None:
            return True
        key = self._cache.key(batch.model, state.item.request)
        found = self._cache.get(key, batch.model.device)
        if found is not None:
            state.arguments = found
        return found is not None


def check_length(model: LoadedModel, request: GenerationRequest) -> list[str]:
    """Return warnings for texts that are cut. Raises InvalidInput unless cutting is allowed.

    Encoders with the same tokenizer find the same, which is reported once.
    """
    problems, warnings = [], []
    for limit in calls_of(model.spec.family).token_limits(model.tokenizers, request):
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
