"""The key that requests of one batch have in common."""

from dataclasses import dataclass, replace

from pixpod.job import (
    ControlOptions,
    GenerationRequest,
    ImagePromptOptions,
    LoraSlots,
    Mode,
    Quality,
    RefinerOptions,
    Sampling,
    TextOptions,
    UpscalerOptions,
)

PIXELS_PER_TOKEN = 256
"""VAE stride 8 and patches of 2, both squared. UNets are counted in the same way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchKey:
    """Everything that requests of one batch have in common.

    It has everything that shapes the denoiser's call. Prompts, seeds, LoRAs and image prompts may
    differ, also in their scales (that of an image prompt is 1 here). Requests with and without
    slots for LoRAs run apart, and so do those with other adapters or numbers of images.
    """

    model: str
    mode: Mode
    quality: Quality
    width: int
    height: int
    sampling: Sampling
    text: TextOptions
    num_references: int = 0
    controls: tuple[ControlOptions, ...] = ()
    refiner: RefinerOptions | None = None
    image_prompt: ImagePromptOptions | None = None
    upscaler: UpscalerOptions | None = None
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
        num_references=request.num_references,
        controls=request.controls,
        refiner=request.refiner,
        image_prompt=replace(prompt, scale=1.0) if prompt else None,
        upscaler=request.upscaler,
        slots=request.conditions.slots,
    )


def num_tokens(key: BatchKey) -> int:
    """Count the latent and text tokens of one image."""
    num_latents = (
        key.width * key.height // PIXELS_PER_TOKEN * latents_per_image(key.mode, key.num_references)
    )
    return num_latents + (key.text.max_sequence_length or 0) + prompt_tokens(key.image_prompt)


def prompt_tokens(prompt: ImagePromptOptions | None) -> int:
    """Count the tokens by which an image prompt makes the text longer."""
    return prompt.text_tokens if prompt else 0


def latents_per_image(mode: Mode, num_references: int) -> int:
    """Return how many images the denoiser's input has: edits have the given ones, too."""
    return 2 + num_references if mode is Mode.EDIT else 1
