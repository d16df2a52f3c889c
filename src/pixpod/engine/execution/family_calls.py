"""Per family: how text becomes embeddings, and how a request becomes a pipeline's arguments."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pixpod.catalog import Family
from pixpod.engine.loading.pipelines import Pipeline, Tokenizer
from pixpod.job import GenerationRequest

Arguments = dict[str, Any]
"""Keyword arguments of a pipeline's call; a tensor's first dimension is 1, one prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLimit:
    """A text and the most tokens, special ones included, that its tokenizer's model reads.

    `is_hard` is false where another encoder reads the whole text anyway.
    """

    field: str
    text: str
    tokenizer: Tokenizer
    limit: int
    is_hard: bool = True


class FamilyRules(Protocol):
    """What differs between families when a request is drawn."""

    def token_limits(self, pipe: Pipeline, request: GenerationRequest) -> Iterator[TokenLimit]:
        """Which texts are read by which tokenizers, and how far."""
        ...

    def encode_text(self, pipe: Pipeline, request: GenerationRequest) -> Arguments:
        """Embeddings of one prompt. A text that is too long is cut by the tokenizer."""
        ...

    def call_arguments(self, request: GenerationRequest) -> Arguments:
        """The numbers of the request under the names of the pipeline."""
        ...


class FluxRules:
    """CLIP for the pooled embedding, T5 for the sequence; guidance is distilled or true CFG."""

    def token_limits(self, pipe: Pipeline, request: GenerationRequest) -> Iterator[TokenLimit]:
        clip_limit = pipe.tokenizer.model_max_length
        assert request.max_sequence_length is not None
        yield TokenLimit(
            field="prompt",
            text=request.prompt,
            tokenizer=pipe.tokenizer,
            limit=clip_limit,
            is_hard=False,
        )
        for field, text in _second_texts(request):
            yield TokenLimit(
                field=field,
                text=text,
                tokenizer=pipe.tokenizer_2,
                limit=request.max_sequence_length,
            )

    def encode_text(self, pipe: Pipeline, request: GenerationRequest) -> Arguments:
        options = {"max_sequence_length": request.max_sequence_length, "device": _device(pipe)}
        embeds, pooled, _ = pipe.encode_prompt(
            prompt=request.prompt, prompt_2=request.prompt_2, **options
        )
        arguments = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        if _has_true_cfg(request):
            embeds, pooled, _ = pipe.encode_prompt(
                prompt=request.negative_prompt, prompt_2=None, **options
            )
            arguments |= {"negative_prompt_embeds": embeds, "negative_pooled_prompt_embeds": pooled}
        return arguments

    def call_arguments(self, request: GenerationRequest) -> Arguments:
        arguments: Arguments = {"true_cfg_scale": request.true_cfg_scale or 1.0}
        if request.guidance_scale is not None:
            arguments["guidance_scale"] = request.guidance_scale
        return arguments


class SdxlRules:
    """Two CLIP encoders; classifier-free guidance above a scale of 1."""

    def token_limits(self, pipe: Pipeline, request: GenerationRequest) -> Iterator[TokenLimit]:
        for field, text in (
            ("prompt", request.prompt),
            ("negative_prompt", request.negative_prompt),
        ):
            if text is not None:
                yield _clip_limit(field, text, pipe.tokenizer)
        for field, text in _second_texts(request):
            yield _clip_limit(field, text, pipe.tokenizer_2)

    def encode_text(self, pipe: Pipeline, request: GenerationRequest) -> Arguments:
        embeds, negative_embeds, pooled, negative_pooled = pipe.encode_prompt(
            prompt=request.prompt,
            prompt_2=request.prompt_2,
            device=_device(pipe),
            negative_prompt=request.negative_prompt,
            do_classifier_free_guidance=_has_guidance(request),
        )
        return {
            "prompt_embeds": embeds,
            "negative_prompt_embeds": negative_embeds,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": negative_pooled,
        }

    def call_arguments(self, request: GenerationRequest) -> Arguments:
        return {"guidance_scale": request.guidance_scale}


class Sd15Rules:
    """One CLIP encoder; classifier-free guidance above a scale of 1."""

    def token_limits(self, pipe: Pipeline, request: GenerationRequest) -> Iterator[TokenLimit]:
        yield _clip_limit("prompt", request.prompt, pipe.tokenizer)
        if request.negative_prompt is not None:
            yield _clip_limit("negative_prompt", request.negative_prompt, pipe.tokenizer)

    def encode_text(self, pipe: Pipeline, request: GenerationRequest) -> Arguments:
        embeds, negative_embeds = pipe.encode_prompt(
            prompt=request.prompt,
            device=_device(pipe),
            num_images_per_prompt=1,
            do_classifier_free_guidance=_has_guidance(request),
            negative_prompt=request.negative_prompt,
        )
        return {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}

    def call_arguments(self, request: GenerationRequest) -> Arguments:
        return {"guidance_scale": request.guidance_scale}


RULES: Mapping[Family, FamilyRules] = {
    Family.FLUX: FluxRules(),
    Family.SDXL: SdxlRules(),
    Family.SD15: Sd15Rules(),
}


def count_tokens(limit: TokenLimit) -> int:
    """Tokens of the whole text, special ones included."""
    return len(limit.tokenizer(limit.text, truncation=False, verbose=False).input_ids)


def stack_rows(rows: Sequence[Arguments]) -> Arguments:
    """The prompts of all rows of a batch as one; what is no tensor is the same for all of them."""
    return {
        name: torch.cat([row[name] for row in rows]) if isinstance(value, torch.Tensor) else value
        for name, value in rows[0].items()
    }


def _device(pipe: Pipeline) -> torch.device:
    """A pipeline that is not told looks for hooks in all its modules, which takes milliseconds."""
    device: torch.device = next(pipe.text_encoder.parameters()).device
    return device


def _second_texts(request: GenerationRequest) -> Iterator[tuple[str, str]]:
    """What the second encoder reads: `prompt_2` if there is one; it shares the negative."""
    if request.prompt_2 is None:
        yield "prompt", request.prompt
    else:
        yield "prompt_2", request.prompt_2
    if request.negative_prompt is not None:
        yield "negative_prompt", request.negative_prompt


def _clip_limit(field: str, text: str, tokenizer: Tokenizer) -> TokenLimit:
    return TokenLimit(field=field, text=text, tokenizer=tokenizer, limit=tokenizer.model_max_length)


def _has_true_cfg(request: GenerationRequest) -> bool:
    return request.true_cfg_scale is not None and request.true_cfg_scale > 1


def _has_guidance(request: GenerationRequest) -> bool:
    return request.guidance_scale is not None and request.guidance_scale > 1
