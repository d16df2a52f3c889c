"""SDXL's refiner, and other UNets in its place: the texts and the numbers that they read."""

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline

from pixpod.engine.execution.pipelines.base import Arguments, replace_embeddings
from pixpod.engine.execution.pipelines.sdxl import SdxlCalls, embeddings
from pixpod.engine.model import Component, LoadedModel, Pipeline
from pixpod.errors import ModelUnavailable
from pixpod.families.sdxl import SDXL_TEXT
from pixpod.job import GenerationRequest
from pixpod.methods import is_guided

_NUM_SIZES = 6
"""Numbers that SDXL reads: width and height of original, crop and target."""

_NUM_AESTHETIC = 5
"""Numbers that its refiner reads: an aesthetic score in the place of the target."""


class SdxlRefinerCalls:
    """Reads texts for a refiner by its UNet's config: by the second encoder alone, or by both."""

    def check_fit(self, model: LoadedModel, unet: Component) -> None:
        first, second = _widths(model)
        numbers = _num_numbers(unet, model.components["text_encoder_2"])
        facts = {
            "cross_attention_dim": (unet.config.cross_attention_dim, (first + second, second)),
            "in_channels": (unet.config.in_channels, (model.denoiser.config.in_channels,)),
            "numbers beside the text": (numbers, (_NUM_SIZES, _NUM_AESTHETIC)),
        }
        for name, (found, accepted) in facts.items():
            if found not in accepted:
                listed = " or ".join(map(str, accepted))
                raise ModelUnavailable(
                    f"the refiner does not fit {model.spec.name}: {name}: expected {listed}, "
                    f"got {found}"
                )

    def reads_like_the_model(self, model: LoadedModel, unet: Component) -> bool:
        return bool(unet.config.cross_attention_dim == sum(_widths(model)))

    def encode_text(
        self, pipe: Pipeline, request: GenerationRequest, device: torch.device
    ) -> Arguments:
        prompts = request.prompts
        # as the model_index.json of stabilityai/stable-diffusion-xl-refiner-1.0 has it
        reader = StableDiffusionXLImg2ImgPipeline(
            vae=pipe.vae,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=pipe.text_encoder_2,
            tokenizer_2=pipe.tokenizer_2,
            unet=pipe.unet,
            scheduler=pipe.scheduler,
            force_zeros_for_empty_prompt=False,
            requires_aesthetics_score=True,
            add_watermarker=False,
        )
        plain = embeddings(
            reader.encode_prompt(
                prompt=prompts.prompt_2 or prompts.prompt,
                device=device,
                negative_prompt=prompts.negative_prompt,
                do_classifier_free_guidance=is_guided(request.sampling.guidance_scale),
            )
        )
        return replace_embeddings(plain, reader, request, SDXL_TEXT, SdxlCalls.encoders[1:])

    def prepare(self, pipe: Pipeline) -> None:
        """Have the pipeline give the UNet the numbers that it reads.

        The scores are the pipeline's own: 6.0, and 2.5 for the negative prompt.
        """
        is_aesthetic = _num_numbers(pipe.unet, pipe.text_encoder_2) == _NUM_AESTHETIC
        pipe.register_to_config(requires_aesthetics_score=is_aesthetic)


def _widths(model: LoadedModel) -> tuple[int, int]:
    """Return the widths of the embeddings of both text encoders."""
    first, second = (model.components[name] for name in model.spec.family.text_encoders)
    return first.config.hidden_size, second.config.hidden_size


def _num_numbers(unet: Component, text_encoder_2: Component) -> float:
    """Return how many numbers a UNet reads beside the pooled text; 0 for one that reads none."""
    width = unet.config.projection_class_embeddings_input_dim
    if width is None:
        return 0.0
    pooled = text_encoder_2.config.projection_dim
    return float((width - pooled) / unet.config.addition_time_embed_dim)
