"""Step caching for `quality: turbo`: denoiser calls that would change little are skipped.

This is diffusers' first-block cache: if the first block of a step changes the latents almost as
it did in the last computed step, the result of all other blocks is taken from that step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from torch import nn

from pixpod.engine.model import Component
from pixpod.engine.precision.precision import MIN_TURBO_STEPS
from pixpod.engine.precision.quantization import is_8_bit
from pixpod.job import Quality

THRESHOLD = 0.08
"""Relative change below which a step is skipped. FLUX.1-dev, 28 steps, on an L20: 26.36 s to
17.01 s (ParaAttention's documentation)."""

THRESHOLD_8_BIT = 0.12
"""Threshold for 8 bits, where rounding of activations adds changes. With FP8: 13.40 s to 7.56 s
(same source)."""


@dataclass(slots=True, kw_only=True)
class Skipped:
    """Number of denoiser calls that were skipped; counted when the context ends."""

    num_calls: int = 0


class _BlockShim(nn.Module):
    """Stands in for a block while steps are cached, and takes the cache's hooks in its place.

    The block and its compiled code stay as they are.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.num_calls = 0

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **others: object
    ) -> object:
        self.num_calls += 1
        return self.block(
            hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **others
        )


@contextmanager
def step_caching(
    denoiser: Component, block_lists: Sequence[str], quality: Quality, num_inference_steps: int
) -> Iterator[Skipped]:
    """Skip denoiser calls during one call of a pipeline with one image, for `turbo` only.

    One image, because skipping is decided for a whole batch. `block_lists` are attributes of the
    denoiser that hold its blocks, in order. Afterwards the denoiser is as it was before.
    """
    skipped = Skipped()
    if quality is not Quality.TURBO or num_inference_steps < MIN_TURBO_STEPS:
        yield skipped
        return
    _register_block_shim()
    blocks = {name: getattr(denoiser, name) for name in block_lists}
    shims = {name: [_BlockShim(block) for block in listed] for name, listed in blocks.items()}
    threshold = THRESHOLD_8_BIT if is_8_bit(denoiser) else THRESHOLD
    try:
        for name, listed in shims.items():
            setattr(denoiser, name, nn.ModuleList(listed))
        denoiser.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        yield skipped
    finally:
        if denoiser.is_cache_enabled:
            denoiser.disable_cache()
        for name, listed in blocks.items():
            setattr(denoiser, name, listed)
        first, *_, last = (shim for listed in shims.values() for shim in listed)
        skipped.num_calls = first.num_calls - last.num_calls


def _register_block_shim() -> None:
    """Register the shim with diffusers, whose results have the order of those of FLUX's blocks."""
    TransformerBlockRegistry.register(
        model_class=_BlockShim,
        metadata=TransformerBlockMetadata(
            return_hidden_states_index=1, return_encoder_hidden_states_index=0
        ),
    )
