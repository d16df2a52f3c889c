"""SDXL pipelines: two CLIP text encoders, classifier-free guidance above a scale of 1."""

from collections.abc import Iterator, Mapping

import torch

from pixpod.catalog import Size
from pixpod.engine.execution.pipelines.base import (
    Arguments,
    TokenLimit,
    clip_limit,
    decode_latents,
    second_texts,
)
from pixpod.engine.model import Pipeline, Tokenizer
from pixpod.job import GenerationRequest, Sampling
from pixpod.methods import is_guided


class SdxlCalls:
    """Both encoders read the negative prompt."""

    def token_limits(
        self, tokenizers: Mapping[str, Tokenizer], request: GenerationRequest
    ) -> Iterator[TokenLimit]:
        prompts = request.prompts
        yield clip_limit("prompt", prompts.prompt, tokenizers["tokenizer"])
        if prompts.negative_prompt is not None:
            yield clip_limit("negative_prompt", prompts.negative_prompt, tokenizers["tokenizer"])
        for field, text in second_texts(prompts):
            yield clip_limit(field, text, tokenizers["tokenizer_2"])

    def encode_text(
        self, pipe: Pipeline, request: GenerationRequest, device: torch.device
    ) -> Arguments:
        embeds, negative_embeds, pooled, negative_pooled = pipe.encode_prompt(
            prompt=request.prompts.prompt,
            prompt_2=request.prompts.prompt_2,
            device=device,
            negative_prompt=request.prompts.negative_prompt,
            do_classifier_free_guidance=is_guided(request.sampling.guidance_scale),
        )
        return {
            "prompt_embeds": embeds,
            "negative_prompt_embeds": negative_embeds,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": negative_pooled,
        }

    def call_arguments(self, sampling: Sampling) -> Arguments:
        return {"guidance_scale": sampling.guidance_scale}

    def decode(self, pipe: Pipeline, latents: torch.Tensor, size: Size) -> torch.Tensor:
        return decode_latents(pipe, latents)
