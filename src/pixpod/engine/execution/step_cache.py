"""`quality: turbo`: steps that would change little are left out, by diffusers' first-block cache.

If the first block of a step changes the image almost as it did in the last step that was computed,
what all the other blocks did then is taken again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from torch import nn

from pixpod.engine.loading.pipelines import Pipeline
from pixpod.engine.precision.precision import MIN_TURBO_STEPS
from pixpod.engine.precision.quantization import is_8_bit
from pixpod.job import Quality

THRESHOLD = 0.08
"""The relative change below which a step is left out. FLUX.1-dev, 28 steps, on an L20: 26.36 s to
17.01 s (ParaAttention's documentation)."""

THRESHOLD_8_BIT = 0.12
"""Rounding of activations adds changes of its own. With FP8: 13.40 s to 7.56 s (as above)."""

BLOCKS = ("transformer_blocks", "single_transformer_blocks")


@dataclass(slots=True, kw_only=True)
class Skipped:
    """How many calls of the denoiser were left out; counted when the context ends."""

    num_calls: int = 0


class _Shell(nn.Module):
    """Stands in for a block while steps are cached, and takes the hooks in its place: the block
    and its compiled code stay as they are.
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
def step_caching(pipe: Pipeline, quality: Quality, num_inference_steps: int) -> Iterator[Skipped]:
    """Leave steps out in one call of a FLUX pipeline, of one image, if `turbo` is asked for.

    One call, because what is remembered is of one image; one image, because what is left out is
    decided for a whole batch. Afterwards the pipeline is what it was.
    """
    skipped = Skipped()
    if quality is not Quality.TURBO or num_inference_steps < MIN_TURBO_STEPS:
        yield skipped
        return
    transformer = pipe.transformer
    _make_shells_known()
    lists = {name: getattr(transformer, name) for name in BLOCKS}
    shells = {name: [_Shell(block) for block in blocks] for name, blocks in lists.items()}
    threshold = THRESHOLD_8_BIT if is_8_bit(transformer) else THRESHOLD
    try:
        for name, blocks in shells.items():
            setattr(transformer, name, nn.ModuleList(blocks))
        transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        yield skipped
    finally:
        if transformer.is_cache_enabled:
            transformer.disable_cache()
        for name, blocks in lists.items():
            setattr(transformer, name, blocks)
        first, *_, last = (shell for blocks in shells.values() for shell in blocks)
        skipped.num_calls = first.num_calls - last.num_calls


def _make_shells_known() -> None:
    """Diffusers asks which of a block's results is which; as of FLUX's own blocks."""
    TransformerBlockRegistry.register(
        model_class=_Shell,
        metadata=TransformerBlockMetadata(
            return_hidden_states_index=1, return_encoder_hidden_states_index=0
        ),
    )
