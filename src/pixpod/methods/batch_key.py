"""The key that requests of one batch have in common."""

from dataclasses import dataclass

from pixpod.job import (
    ControlOptions,
    GenerationRequest,
    LoraSlots,
    Mode,
    Quality,
    RefinerOptions,
    Sampling,
    TextOptions,
)

PIXELS_PER_TOKEN = 256
"""VAE stride 8 and patches of 2, both squared. UNets are counted in the same way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchKey:
    """Everything that requests of one batch have in common.

    It has everything that shapes or scales the denoiser's call. Prompts, seeds and LoRAs may
    differ, but requests with and without slots for LoRAs run apart.
    """

    model: str
    mode: Mode
    quality: Quality
    width: int
    height: int
    sampling: Sampling
    text: TextOptions
    controls: tuple[ControlOptions, ...] = ()
    refiner: RefinerOptions | None = None
    slots: LoraSlots | None = None


def batch_key_of(request: GenerationRequest) -> BatchKey:
    """Return the key of the batches that a request may be part of."""
    return BatchKey(
        model=request.model,
        mode=request.mode,
        quality=request.quality,
        width=request.width,
        height=request.height,
        sampling=request.sampling,
        text=request.text,
        controls=request.controls,
        refiner=request.refiner,
        slots=request.conditions.slots,
    )


def num_tokens(key: BatchKey) -> int:
    """Count the latent and text tokens of one image."""
    return key.width * key.height // PIXELS_PER_TOKEN + (key.text.max_sequence_length or 0)
