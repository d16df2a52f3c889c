"""SD 1.5 pipelines: one CLIP text encoder, classifier-free guidance above a scale of 1."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from pixpod.catalog import Size
from pixpod.engine.execution.pipelines.base import (
    Arguments,
    EncoderNames,
    TokenLimit,
    check_channels,
    check_side,
    clip_limit,
    decode_latents,
    encode_latents,
    image_arguments,
    replace_embeddings,
)
from pixpod.engine.model import LoadedModel, Pipeline, Tokenizer
from pixpod.errors import ModelUnavailable
from pixpod.families import ClipTextSpec
from pixpod.families.sd15 import SD15_TEXT
from pixpod.job import GenerationRequest, ImagePromptOptions, Mode
from pixpod.methods import is_guided


class Sd15Calls:
    """Calls SD 1.5, whose only text encoder reads prompt and negative prompt."""

    clip_text: ClipTextSpec = SD15_TEXT
    encoders: Sequence[EncoderNames] = (("prompt", "tokenizer", "text_encoder"),)

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
        plain = self._encode_plain(pipe, request, device)
        return replace_embeddings(plain, pipe, request, self.clip_text, self.encoders)

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
        scale = request.sampling.guidance_scale or 0.0  # distilled models have none
        return {"guidance_scale": scale, **image_arguments(request)}

    def encode_image(self, pipe: Pipeline, pixels: torch.Tensor) -> torch.Tensor:
        return encode_latents(pipe, pixels)

    def control_arguments(
        self, pipe: Pipeline, request: GenerationRequest, images: list[torch.Tensor]
    ) -> Arguments:
        is_text = request.mode is Mode.TEXT_TO_IMAGE  # else `image` is the given one
        return {"image" if is_text else "control_image": images}

    def check_image_prompt(self, model: LoadedModel, prompt: ImagePromptOptions) -> None:
        assert prompt.encoder is not None, "an IP-Adapter names its image encoder"
        name, adapter = prompt.adapter, model.extras[prompt.adapter].module
        encoder = model.extras[prompt.encoder].module
        check_side(prompt.encoder, encoder, prompt)
        seen = adapter.projection.proj_in.in_features
        check_channels(name, encoder.config.hidden_size, seen, f"the encoder {prompt.encoder}")
        if reason := adapter.misfit(model.denoiser):
            raise ModelUnavailable(f"{name} does not go with {model.spec.name}: {reason}")

    def see_image(
        self, model: LoadedModel, prompt: ImagePromptOptions, pixels: torch.Tensor
    ) -> torch.Tensor:
        assert prompt.encoder is not None
        encoder = model.extras[prompt.encoder].module
        states = encoder(pixels.to(encoder.dtype), output_hidden_states=True).hidden_states
        seen: torch.Tensor = states[-2]  # as IP-Adapter Plus was trained
        return seen

    def image_tokens(
        self, model: LoadedModel, prompt: ImagePromptOptions, seen: torch.Tensor
    ) -> torch.Tensor:
        tokens: torch.Tensor = model.extras[prompt.adapter].module.projection(seen)
        return tokens

    def with_images(
        self,
        pipe: Pipeline,
        arguments: Arguments,
        tokens: torch.Tensor,
        negative: torch.Tensor | None,
        scales: torch.Tensor,
    ) -> Arguments:
        if negative is not None:
            tokens, scales = torch.cat([negative, tokens]), torch.cat([scales, scales])
        embeds = [tokens, scales]
        # the pipeline would repeat the images of one row for all of them
        pipe.prepare_ip_adapter_image_embeds = lambda *others: embeds
        return {**arguments, "ip_adapter_image_embeds": embeds}

    def pack(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def decode(self, pipe: Pipeline, latents: torch.Tensor, size: Size) -> torch.Tensor:
        return decode_latents(pipe, latents)
