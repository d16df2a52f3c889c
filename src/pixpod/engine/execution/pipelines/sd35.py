"""Stable Diffusion 3.5 pipelines: two CLIP encoders and perhaps T5, classifier-free guidance."""

from collections.abc import Iterator, Mapping

import torch

from pixpod.catalog import Size
from pixpod.engine.execution.pipelines.base import (
    Arguments,
    TokenLimit,
    encode_pixels,
    image_arguments,
    second_texts,
)
from pixpod.engine.execution.pipelines.sdxl import embeddings
from pixpod.engine.model import Pipeline, Tokenizer
from pixpod.job import GenerationRequest
from pixpod.methods import is_guided


class Sd35Calls:
    """Calls SD 3.5. T5 reads `prompt`, the second CLIP encoder `prompt_2`; all read the negative
    prompt. Without T5, diffusers puts zeros in the place of its tokens.
    """

    def token_limits(
        self, tokenizers: Mapping[str, Tokenizer], request: GenerationRequest
    ) -> Iterator[TokenLimit]:
        prompts, t5 = request.prompts, tokenizers.get("tokenizer_3")
        texts = {"prompt": prompts.prompt, **dict(second_texts(prompts))}
        for field, text in texts.items():
            has_t5 = t5 is not None and field != "prompt_2"
            clip = tokenizers["tokenizer_2" if field == "prompt_2" else "tokenizer"]
            yield TokenLimit(
                field=field,
                text=text,
                tokenizer=clip,
                limit=clip.model_max_length,
                is_hard=not has_t5,
            )
            if has_t5:
                assert request.text.max_sequence_length is not None
                limit = request.text.max_sequence_length
                yield TokenLimit(field=field, text=text, tokenizer=t5, limit=limit)

    def encode_text(
        self, pipe: Pipeline, request: GenerationRequest, device: torch.device
    ) -> Arguments:
        prompts = request.prompts
        return embeddings(
            pipe.encode_prompt(
                prompt=prompts.prompt,
                prompt_2=prompts.prompt_2,
                prompt_3=None,
                negative_prompt=prompts.negative_prompt,
                do_classifier_free_guidance=is_guided(request.sampling.guidance_scale),
                max_sequence_length=request.text.max_sequence_length,
                device=device,
            )
        )

    def call_arguments(self, request: GenerationRequest) -> Arguments:
        scale = request.sampling.guidance_scale or 0.0  # distilled models have none
        size = {"width": request.width, "height": request.height}
        return {"guidance_scale": scale, **size, **image_arguments(request)}

    def encode_image(self, pipe: Pipeline, pixels: torch.Tensor) -> torch.Tensor:
        config = pipe.vae.config
        latents = encode_pixels(pipe, pixels) - float(config.shift_factor)
        return latents * float(config.scaling_factor)

    def pack(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def decode(self, pipe: Pipeline, latents: torch.Tensor, size: Size) -> torch.Tensor:
        vae = pipe.vae
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        image = vae.decode(latents, return_dict=False)[0]
        pixels: torch.Tensor = pipe.image_processor.postprocess(image, output_type="pt")
        return pixels
