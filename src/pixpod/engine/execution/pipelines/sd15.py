"""SD 1.5 pipelines: one CLIP text encoder, classifier-free guidance above a scale of 1."""

from collections.abc import Iterator, Mapping

import torch

from pixpod.catalog import Size
from pixpod.engine.execution.pipelines.base import (
    Arguments,
    TokenLimit,
    clip_limit,
    decode_latents,
    encode_latents,
    image_arguments,
)
from pixpod.engine.model import Pipeline, Tokenizer
from pixpod.families import ClipTextSpec
from pixpod.families.sd15 import SD15_TEXT
from pixpod.job import GenerationRequest, Mode
from pixpod.methods import is_guided


class Sd15Calls:
    """Calls SD 1.5, whose only text encoder reads prompt and negative prompt."""

    clip_text: ClipTextSpec = SD15_TEXT
    encoders: tuple[tuple[str, str], ...] = (("tokenizer", "text_encoder"),)

    def token_limits(
        self, tokenizers: Mapping[str, Tokenizer], request: GenerationRequest
    ) -> Iterator[TokenLimit]:
        prompts = request.prompts
        yield clip_limit("prompt", prompts.prompt, tokenizers["tokenizer"])
        if prompts.negative_prompt is not None:
            yield clip_limit("negative_prompt", prompts.negative_prompt, tokenizers["tokenizer"])

    def encode_text(
        self, pipe: Pipeline, request: GenerationRequest, device: torch.device
    ) -> Arguments:
        arguments = self._encode_plain(pipe, request, device)
        # clip_skip of SD 1.5 fails in diffusers with this transformers (diffusers#14124)
        if request.prompts.weighted or request.text.num_chunks > 1 or request.text.clip_skip:
            arguments |= self._encode_parts(pipe, request, arguments)
        return arguments

    def _encode_parts(
        self, pipe: Pipeline, request: GenerationRequest, plain: Arguments
    ) -> Arguments:
        """Return embeddings that take the place of plain ones; pooled ones stay as they are."""
        # imported late, because it takes time at boot and few requests need it
        from pixpod.engine.execution.pipelines.clip_text import ClipEncoder, encode

        prompts, text = request.prompts, request.text

        def encode_fields(fields: tuple[str, ...], clip_skip: int) -> torch.Tensor:
            encoders = [
                ClipEncoder(
                    field=field, tokenizer=getattr(pipe, tokenizer), module=getattr(pipe, module)
                )
                for field, (tokenizer, module) in zip(fields, self.encoders, strict=True)
            ]
            return encode(
                encoders, prompts, self.clip_text, clip_skip=clip_skip, num_chunks=text.num_chunks
            )

        second = "prompt" if prompts.prompt_2 is None else "prompt_2"
        embeds = encode_fields(("prompt", second)[: len(self.encoders)], text.clip_skip)
        if plain["negative_prompt_embeds"] is None:
            return {"prompt_embeds": embeds}
        if prompts.negative_prompt is None and pipe.config.get("force_zeros_for_empty_prompt"):
            negative = torch.zeros_like(embeds)
        else:  # as in diffusers, clip_skip is for the prompt alone
            negative = encode_fields(("negative_prompt",) * len(self.encoders), 0)
        return {"prompt_embeds": embeds, "negative_prompt_embeds": negative}

    def _encode_plain(
        self, pipe: Pipeline, request: GenerationRequest, device: torch.device
    ) -> Arguments:
        embeds, negative_embeds = pipe.encode_prompt(
            prompt=request.prompts.prompt,
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=is_guided(request.sampling.guidance_scale),
            negative_prompt=request.prompts.negative_prompt,
        )
        return {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}

    def call_arguments(self, request: GenerationRequest) -> Arguments:
        return {"guidance_scale": request.sampling.guidance_scale, **image_arguments(request)}

    def encode_image(self, pipe: Pipeline, pixels: torch.Tensor) -> torch.Tensor:
        return encode_latents(pipe, pixels)

    def control_arguments(
        self, pipe: Pipeline, request: GenerationRequest, images: list[torch.Tensor]
    ) -> Arguments:
        is_text = request.mode is Mode.TEXT_TO_IMAGE  # else `image` is the given one
        return {"image" if is_text else "control_image": images}

    def pack(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def decode(self, pipe: Pipeline, latents: torch.Tensor, size: Size) -> torch.Tensor:
        return decode_latents(pipe, latents)
