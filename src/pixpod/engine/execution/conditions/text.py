"""Text as a condition: its length is checked, its embeddings are cached."""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace

from pixpod.engine.execution.condition_cache import ConditionCache, cache_key
from pixpod.engine.execution.conditions.base import Condition, Prepared
from pixpod.engine.execution.pipelines import Arguments, TokenLimit, calls_of
from pixpod.engine.model import LoadedModel, Pipeline, Tokenizer
from pixpod.errors import InvalidInput, Problem
from pixpod.job import GenerationRequest, LongPrompt, Prompts
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
        self._lock = threading.Lock()
        self._tokenizers: dict[str, Mapping[str, Tokenizer]] = {}

    def prepare(self, model: LoadedModel, prepared: Prepared) -> Prepared:
        request = prepared.request
        if request.text.prompt_weights:
            request = replace(request, prompts=_read_weights(request.prompts))
        if request.text.on_long_prompt is LongPrompt.CHUNK:
            with self._lock:
                num_chunks = _count_chunks(model, self._copies(model), request)
            request = replace(request, text=replace(request.text, num_chunks=num_chunks))
        return replace(prepared, request=request)

    def _copies(self, model: LoadedModel) -> Mapping[str, Tokenizer]:
        """Return tokenizers for other threads than the device's: a tokenizer keeps how it
        truncates, and a call changes that for all threads.
        """
        name = model.spec.name
        if name not in self._tokenizers:
            self._tokenizers[name] = copy.deepcopy(dict(model.tokenizers))
        return self._tokenizers[name]

    def check(self, model: LoadedModel, request: GenerationRequest) -> list[str]:
        """Return warnings for texts that are cut. Raises InvalidInput unless cutting is allowed.

        Encoders with the same tokenizer give the same warning, which is returned once.
        """
        problems, warnings = list(_check_clip_skip(model, request)), []
        calls = calls_of(model.spec.family)
        for limit in calls.token_limits(model.tokenizers, request):
            num_tokens = limit.count_tokens()
            if num_tokens <= limit.limit or request.text.num_chunks > 1:
                continue
            if request.text.on_long_prompt is LongPrompt.TRUNCATE or not limit.is_hard:
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
        request.text.clip_skip,
        request.text.num_chunks,
        uses_negative_prompt(model.spec.family, request.sampling),
        *changes,
    )


def _read_weights(prompts: Prompts) -> Prompts:
    """Return plain texts, and the parts of those with weights. Raises InvalidInput."""
    # imported late, because it takes time at boot and few requests need it
    from pixpod.engine.execution.pipelines.prompt_weights import BadWeights, read_weights

    plain, weighted, problems = {}, {}, []
    for name in ("prompt", "prompt_2", "negative_prompt"):
        if (given := getattr(prompts, name)) is None:
            continue
        try:
            text = read_weights(given)
        except BadWeights as bad:
            problems.append(Problem(field=name, value=None, accepted=str(bad)))
            continue
        plain[name] = text.text
        if text.has_weights:
            weighted[name] = text
    if problems:
        raise InvalidInput(problems)
    return replace(prompts, **plain, weighted=weighted)


def _count_chunks(
    model: LoadedModel, tokenizers: Mapping[str, Tokenizer], request: GenerationRequest
) -> int:
    """Return the chunks of the longest text. Raises InvalidInput for too many."""
    from pixpod.engine.execution.pipelines.clip_text import count_chunks

    family = model.spec.family
    assert family.clip_text is not None, "the contract refuses chunks for other families"
    highest, most, problems = 1, family.clip_text.max_chunks, []
    for limit in calls_of(family).token_limits(tokenizers, request):
        num_chunks = count_chunks(limit.tokenizer, request.prompts.parts_of(limit.field))
        highest = max(highest, num_chunks)
        if num_chunks > most:
            accepted = f"at most {most} chunks of {limit.limit - 2} tokens"
            problem = Problem(field=limit.field, value=f"{num_chunks} chunks", accepted=accepted)
            problems.append(problem)
    if problems:
        raise InvalidInput(list(dict.fromkeys(problems)))
    return highest


def _check_clip_skip(model: LoadedModel, request: GenerationRequest) -> Iterator[Problem]:
    """Yield a problem for an encoder that has fewer layers than those of its family."""
    clip, skipped = model.spec.family.clip_text, request.text.clip_skip
    if clip is None or not skipped:
        return
    names = model.spec.family.text_encoders
    num_layers = min(model.components[name].config.num_hidden_layers for name in names)
    if skipped > num_layers - clip.state:
        accepted = f"at most {num_layers - clip.state} for {model.spec.name}"
        yield Problem(field="clip_skip", value=skipped, accepted=accepted)


def _truncated(limit: TokenLimit, num_tokens: int) -> str:
    also = "" if limit.is_hard else " by CLIP; T5 reads it as well"
    return f"{limit.field}: only {limit.limit} of its {num_tokens} tokens are read{also}"


def _too_long(limit: TokenLimit, num_tokens: int) -> Problem:
    return Problem(
        field=limit.field,
        value=f"{num_tokens} tokens",
        accepted=f"at most {limit.limit} tokens",
        hint="shorten it, or set on_long_prompt",
    )
