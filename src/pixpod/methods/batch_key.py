"""The key that requests of one batch have in common."""

from dataclasses import dataclass

from pixpod.families import FamilySpec
from pixpod.job import (
    ControlOptions,
    GenerationRequest,
    LoraSlots,
    Mode,
    Quality,
    Sampling,
    TextOptions,
)

PIXELS_PER_TOKEN = 256
"""VAE stride 8 and patches of 2, both squared. UNets are counted in the same way."""


PromptShape = tuple[str, int]
"""The adapter and the number of images of an image prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchKey:
    """Everything that requests of one batch have in common.

    It has everything that shapes the denoiser's call. Prompts, seeds, LoRAs and image prompts may
    differ, also in their scales. Requests with and without slots for LoRAs run apart, and so do
    those with other adapters or other numbers of images in their prompts.
    """

    model: str
    mode: Mode
    quality: Quality
    width: int
    height: int
    sampling: Sampling
    text: TextOptions
    controls: tuple[ControlOptions, ...] = ()
    image_prompt: PromptShape | None = None
    slots: LoraSlots | None = None


def batch_key_of(request: GenerationRequest) -> BatchKey:
    """Return the key of the batches that a request may be part of."""
    prompt = request.image_prompt
    return BatchKey(
        model=request.model,
        mode=request.mode,
        quality=request.quality,
        width=request.width,
        height=request.height,
        sampling=request.sampling,
        text=request.text,
        controls=request.controls,
        image_prompt=(prompt.adapter, prompt.num_images) if prompt else None,
        slots=request.conditions.slots,
    )


def num_tokens(family: FamilySpec, key: BatchKey) -> int:
    """Count the latent and text tokens of one image."""
    num_images = key.image_prompt[1] if key.image_prompt else 0
    text = (key.text.max_sequence_length or 0) + num_prompt_tokens(family, num_images)
    return key.width * key.height // PIXELS_PER_TOKEN + text


def num_prompt_tokens(family: FamilySpec, num_images: int) -> int:
    """Count the tokens by which the images of a prompt lengthen the text."""
    spec = family.image_prompt
    return num_images * spec.num_tokens if spec and spec.extends_text else 0
