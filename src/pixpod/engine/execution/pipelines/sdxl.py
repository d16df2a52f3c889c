"""SDXL pipelines: two CLIP text encoders, classifier-free guidance above a scale of 1."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from pixpod.engine.execution.pipelines.base import (
    Arguments,
    TokenLimit,
    clip_limit,
    second_texts,
)
from pixpod.engine.execution.pipelines.sd15 import Sd15Calls
from pixpod.engine.model import Pipeline, Tokenizer
from pixpod.families.sdxl import SDXL_TEXT
from pixpod.job import GenerationRequest
from pixpod.methods import is_guided


class SdxlCalls(Sd15Calls):
    """Calls SDXL, whose two encoders read the negative prompt. The first is that of SD 1.5."""

    clip_text = SDXL_TEXT
    encoders = (
        ("prompt", "tokenizer", "text_encoder"),
        ("prompt_2", "tokenizer_2", "text_encoder_2"),
    )

    def token_limits(
        self, tokenizers: Mapping[str, Tokenizer], request: GenerationRequest
    ) -> Iterator[TokenLimit]:
        yield from super().token_limits(tokenizers, request)
        for field, text in second_texts(request.prompts):
            yield clip_limit(field, text, tokenizers["tokenizer_2"])

    def control_arguments(
        self, pipe: Pipeline, request: GenerationRequest, images: list[torch.Tensor]
    ) -> Arguments:
        modes = [control.union_mode for control in request.controls]
        if None in modes:
            return super().control_arguments(pipe, request, images)
        return {"control_image": images, "control_mode": modes}

    def _encode_plain(
        self, pipe: Pipeline, request: GenerationRequest, device: torch.device
    ) -> Arguments:
        return embeddings(
            pipe.encode_prompt(
                prompt=request.prompts.prompt,
                prompt_2=request.prompts.prompt_2,
                device=device,
                negative_prompt=request.prompts.negative_prompt,
                do_classifier_free_guidance=is_guided(request.sampling.guidance_scale),
            )
        )


def embeddings(encoded: Sequence[torch.Tensor | None]) -> Arguments:
    """Return what `encode_prompt` of SDXL has returned as arguments of the pipeline's call."""
    names = ("prompt", "negative_prompt", "pooled_prompt", "negative_pooled_prompt")
    return {f"{name}_embeds": tensor for name, tensor in zip(names, encoded, strict=True)}
