"""FLUX.1 pipelines: CLIP for the pooled embedding, T5 for tokens, packed latents."""

from collections import deque
from collections.abc import Iterator, Mapping
from types import SimpleNamespace

import torch
from diffusers.image_processor import VaeImageProcessor

from pixpod.catalog import Size
from pixpod.engine.execution.pipelines.base import (
    Arguments,
    TokenLimit,
    check_channels,
    check_side,
    encode_pixels,
    image_arguments,
    second_texts,
)
from pixpod.engine.model import LoadedModel, Pipeline, Tokenizer
from pixpod.job import GenerationRequest, ImagePromptOptions
from pixpod.methods import is_guided

PIXEL_CHANNELS = 3


class _EncodedControls:
    """Stands in for the VAE of a pipeline that would encode control images itself.

    Theirs are encoded already, and cached. The pipeline would also take numbers for its samples
    from the rows' generators, so that a control of no weight would change an image. A source image
    comes as latents, and leaves as it came.
    """

    config = SimpleNamespace(shift_factor=0.0, scaling_factor=1.0)

    def __init__(self, controls: list[torch.Tensor]) -> None:
        self.dtype = controls[0].dtype
        self._left = deque(controls)

    def encode(self, image: torch.Tensor) -> SimpleNamespace:
        is_control = image.shape[1] == PIXEL_CHANNELS
        return SimpleNamespace(latents=self._left.popleft() if is_control else image)


class FluxCalls:
    """Calls FLUX, whose guidance is embedded; `true_cfg_scale` runs the transformer twice."""

    def token_limits(
        self, tokenizers: Mapping[str, Tokenizer], request: GenerationRequest
    ) -> Iterator[TokenLimit]:
        clip, t5 = tokenizers["tokenizer"], tokenizers["tokenizer_2"]
        assert request.text.max_sequence_length is not None
        yield TokenLimit(
            field="prompt",
            text=request.prompts.prompt,
            tokenizer=clip,
            limit=clip.model_max_length,
            is_hard=False,
        )
        for field, text in second_texts(request.prompts):
            yield TokenLimit(
                field=field, text=text, tokenizer=t5, limit=request.text.max_sequence_length
            )

    def encode_text(
        self, pipe: Pipeline, request: GenerationRequest, device: torch.device
    ) -> Arguments:
        prompts = request.prompts
        options = {"max_sequence_length": request.text.max_sequence_length, "device": device}
        embeds, pooled, _ = pipe.encode_prompt(
            prompt=prompts.prompt, prompt_2=prompts.prompt_2, **options
        )
        arguments = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        if is_guided(request.sampling.true_cfg_scale):
            embeds, pooled, _ = pipe.encode_prompt(
                prompt=prompts.negative_prompt, prompt_2=None, **options
            )
            arguments |= {"negative_prompt_embeds": embeds, "negative_pooled_prompt_embeds": pooled}
        return arguments

    def call_arguments(self, request: GenerationRequest) -> Arguments:
        sampling = request.sampling
        arguments = {
            "width": request.width,
            "height": request.height,
            **image_arguments(request),
        }
        if is_guided(sampling.true_cfg_scale):  # not all pipelines take it
            arguments["true_cfg_scale"] = sampling.true_cfg_scale
        if sampling.guidance_scale is not None:
            arguments["guidance_scale"] = sampling.guidance_scale
        return arguments

    def encode_image(self, pipe: Pipeline, pixels: torch.Tensor) -> torch.Tensor:
        config = pipe.vae.config
        latents = encode_pixels(pipe, pixels) - float(config.shift_factor)
        return latents * float(config.scaling_factor)

    def control_arguments(
        self, pipe: Pipeline, request: GenerationRequest, images: list[torch.Tensor]
    ) -> Arguments:
        pipe.vae = _EncodedControls(images)
        # the class for a source image takes 16 channels for an image, and would scale it
        pipe.image_processor = VaeImageProcessor(
            vae_scale_factor=2 * pipe.vae_scale_factor, vae_latent_channels=images[0].shape[1]
        )
        pixels = torch.zeros((1, 1, 1, 1), device=images[0].device)
        shape = (len(images[0]), PIXEL_CHANNELS, request.height, request.width)
        return {
            "control_image": [pixels.expand(shape) for _ in images],
            "control_mode": [control.union_mode for control in request.controls],
        }

    def check_image_prompt(self, model: LoadedModel, prompt: ImagePromptOptions) -> None:
        name, redux = prompt.adapter, model.extras[prompt.adapter].module
        embedder, encoder = redux.image_embedder.config, redux.image_encoder
        check_side(name, encoder, prompt)
        check_channels(name, encoder.config.hidden_size, embedder.redux_dim, "its image encoder")
        wanted = model.denoiser.config.joint_attention_dim
        check_channels(name, wanted, embedder.txt_in_features, model.spec.name)

    def see_image(
        self, model: LoadedModel, prompt: ImagePromptOptions, pixels: torch.Tensor
    ) -> torch.Tensor:
        encoder = model.extras[prompt.adapter].module.image_encoder
        seen: torch.Tensor = encoder(pixels.to(encoder.dtype)).last_hidden_state
        return seen

    def image_tokens(
        self, model: LoadedModel, prompt: ImagePromptOptions, seen: torch.Tensor
    ) -> torch.Tensor:
        redux = model.extras[prompt.adapter].module
        tokens: torch.Tensor = redux.image_embedder(seen).image_embeds
        return tokens

    def with_images(
        self,
        pipe: Pipeline,
        arguments: Arguments,
        tokens: torch.Tensor,
        negative: torch.Tensor | None,
        scales: torch.Tensor,
    ) -> Arguments:
        text = arguments["prompt_embeds"]
        return {**arguments, "prompt_embeds": torch.cat([text, tokens * scales], dim=1)}

    def pack(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = pipe._pack_latents(latents, *latents.shape)
        return packed

    def decode(self, pipe: Pipeline, latents: torch.Tensor, size: Size) -> torch.Tensor:
        width, height = size
        vae = pipe.vae
        latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        image = vae.decode(latents, return_dict=False)[0]
        pixels: torch.Tensor = pipe.image_processor.postprocess(image, output_type="pt")
        return pixels
