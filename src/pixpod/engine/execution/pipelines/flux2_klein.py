"""FLUX.2 klein: packed latents, whose statistics the VAE has; images to edit are further tokens."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace

import torch

from pixpod.catalog import Size
from pixpod.engine.execution.pipelines.base import (
    Arguments,
    TokenLimit,
    chat_limit,
    image_arguments,
)
from pixpod.engine.model import Component, Pipeline, Tokenizer
from pixpod.job import GenerationRequest
from pixpod.methods import is_guided


class _NoStatistics:
    """Stands in for the VAE of a pipeline that would undo its normalisation of latents.

    That is part of decoding.
    """

    config = SimpleNamespace(batch_norm_eps=0.0)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.bn = SimpleNamespace(running_mean=torch.zeros(1), running_var=torch.ones(1))


class _NoProcessor:
    """Stands in for the image processor of a pipeline whose images are encoded already."""

    def check_image_input(self, image: SimpleNamespace) -> None:
        pass

    def preprocess(self, image: SimpleNamespace, **options: object) -> None:
        pass


class Flux2KleinCalls:
    """Calls klein, whose pipeline would encode the images of one row for all of them."""

    def token_limits(
        self, tokenizers: Mapping[str, Tokenizer], request: GenerationRequest
    ) -> Iterator[TokenLimit]:
        for field in ("prompt", "negative_prompt"):
            if getattr(request.prompts, field) is not None:
                yield chat_limit(field, tokenizers["tokenizer"], request, enable_thinking=False)

    def encode_text(
        self, pipe: Pipeline, request: GenerationRequest, device: torch.device
    ) -> Arguments:
        prompts = request.prompts
        options = {"max_sequence_length": request.text.max_sequence_length, "device": device}
        arguments = {"prompt_embeds": pipe.encode_prompt(prompt=prompts.prompt, **options)[0]}
        if is_guided(request.sampling.guidance_scale):
            negative = pipe.encode_prompt(prompt=prompts.negative_prompt or "", **options)[0]
            arguments["negative_prompt_embeds"] = negative
        return arguments

    def call_arguments(self, request: GenerationRequest) -> Arguments:
        scale = request.sampling.guidance_scale
        return {
            "guidance_scale": 1.0 if scale is None else scale,  # distilled models have none
            **image_arguments(request),
        }

    def encode_image(self, pipe: Pipeline, pixels: torch.Tensor) -> torch.Tensor:
        parameter = next(pipe.vae.encoder.parameters())  # on a CPU the decoder has another format
        latents: torch.Tensor = pipe._encode_vae_image(image=pixels.to(parameter), generator=None)
        return latents

    def arrange(self, pipe: Pipeline, arguments: Arguments) -> Arguments:
        pipe.vae = _NoStatistics(arguments["prompt_embeds"].dtype)
        if "image" not in arguments:
            return arguments
        given = {**arguments}
        first, others = given.pop("image"), given.pop("references", None)
        images = [first, *(() if others is None else others.unbind(1))]
        images = [each.to(given["prompt_embeds"]) for each in images]
        ids = pipe._prepare_image_ids([each[:1] for each in images]).to(first.device)
        packed = torch.cat([pipe._pack_latents(each) for each in images], dim=1)
        found = packed, ids.repeat(len(first), 1, 1)
        pipe.image_processor = _NoProcessor()
        pipe.prepare_image_latents = lambda **options: found
        return {**given, "image": [SimpleNamespace(size=(1, 1))]}

    def pack(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = pipe._pack_latents(latents)
        return packed

    def decode(self, pipe: Pipeline, latents: torch.Tensor, size: Size) -> torch.Tensor:
        vae = pipe.vae
        patches = pipe._patchify_latents(latents.to(vae.dtype))
        mean, deviation = _normal(vae, patches)
        image = vae.decode(pipe._unpatchify_latents(patches * deviation + mean), return_dict=False)[
            0
        ]
        pixels: torch.Tensor = pipe.image_processor.postprocess(image, output_type="pt")
        return pixels


def _normal(vae: Component, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of each channel of patches, as the pipeline computes them."""
    variance = vae.bn.running_var + vae.config.batch_norm_eps
    mean, deviation = (
        each.view(1, -1, 1, 1).to(patches) for each in (vae.bn.running_mean, torch.sqrt(variance))
    )
    return mean, deviation
