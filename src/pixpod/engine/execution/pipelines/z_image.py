"""Z-Image pipelines: embeddings of texts have the lengths of the texts, latents are not packed."""

from collections.abc import Iterator, Mapping

import torch
from diffusers.image_processor import VaeImageProcessor

from pixpod.catalog import Size
from pixpod.engine.execution.pipelines.base import (
    Arguments,
    TokenLimit,
    chat_limit,
    encode_pixels,
    image_arguments,
)
from pixpod.engine.model import Pipeline, Tokenizer
from pixpod.job import GenerationRequest
from pixpod.methods import is_guided


class ZImageCalls:
    """Calls Z-Image, which adds `guidance_scale` times the difference that the prompt makes."""

    def token_limits(
        self, tokenizers: Mapping[str, Tokenizer], request: GenerationRequest
    ) -> Iterator[TokenLimit]:
        for field in ("prompt", "negative_prompt"):
            if getattr(request.prompts, field) is not None:
                yield chat_limit(field, tokenizers["tokenizer"], request, enable_thinking=True)

    def encode_text(
        self, pipe: Pipeline, request: GenerationRequest, device: torch.device
    ) -> Arguments:
        embeds, negative_embeds = pipe.encode_prompt(
            prompt=request.prompts.prompt,
            negative_prompt=request.prompts.negative_prompt,
            do_classifier_free_guidance=is_guided(request.sampling.guidance_scale),
            max_sequence_length=request.text.max_sequence_length,
            device=device,
        )
        return {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}

    def call_arguments(self, request: GenerationRequest) -> Arguments:
        scale = request.sampling.guidance_scale
        return {
            "width": request.width,
            "height": request.height,
            "guidance_scale": scale if is_guided(scale) else 0.0,
            **image_arguments(request),
        }

    def encode_image(self, pipe: Pipeline, pixels: torch.Tensor) -> torch.Tensor:
        config = pipe.vae.config
        latents = encode_pixels(pipe, pixels) - float(config.shift_factor)
        return latents * float(config.scaling_factor)

    def arrange(self, pipe: Pipeline, arguments: Arguments) -> Arguments:
        if "image" in arguments:
            # its own takes images of 4 channels for latents, and those of 16 for pixels
            pipe.image_processor = VaeImageProcessor(
                vae_scale_factor=2 * pipe.vae_scale_factor,
                vae_latent_channels=pipe.transformer.in_channels,
            )
        return arguments

    def pack(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def decode(self, pipe: Pipeline, latents: torch.Tensor, size: Size) -> torch.Tensor:
        vae = pipe.vae
        latents = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        image = vae.decode(latents, return_dict=False)[0]
        pixels: torch.Tensor = pipe.image_processor.postprocess(image, output_type="pt")
        return pixels
