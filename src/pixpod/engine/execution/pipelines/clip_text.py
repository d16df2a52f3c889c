"""Encodes weighted and long texts by compel, with the hidden states that diffusers would read."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from compel.embeddings_provider import EmbeddingsProvider, SplitLongTextMode

from pixpod.engine.model import Component, Tokenizer
from pixpod.families import ClipTextSpec
from pixpod.job import WeightedText


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipEncoder:
    """A text encoder and its tokenizer."""

    tokenizer: Tokenizer
    module: Component


class _HiddenStates:
    """A text encoder as compel calls it: `last_hidden_state` is the chosen state.

    `state` is counted from the last.
    """

    def __init__(self, module: Component, state: int, *, is_normalized: bool) -> None:
        self.device, self.dtype = module.device, module.dtype
        self._module = module
        self._state = state
        self._is_normalized = is_normalized

    def __call__(
        self, token_ids: torch.Tensor, mask: torch.Tensor | None = None, **options: object
    ) -> SimpleNamespace:
        found = self._module(token_ids, attention_mask=mask, output_hidden_states=True)
        state = found.hidden_states[-self._state]
        if self._is_normalized:
            state = self._module.final_layer_norm(state)
        return SimpleNamespace(last_hidden_state=state)


def count_chunks(tokenizer: Tokenizer, text: WeightedText) -> int:
    """Count the chunks of a text, which are cut between words."""
    provider = _provider(tokenizer, None, "cpu", is_cut=False)
    token_ids, _, _ = provider.get_token_ids_and_expand_weights(*_lists(text), device="cpu")
    return len(token_ids) // int(tokenizer.model_max_length)


def encode(
    encoders: Sequence[ClipEncoder],
    texts: Sequence[WeightedText],
    spec: ClipTextSpec,
    *,
    clip_skip: int,
    num_chunks: int,
) -> torch.Tensor:
    """Encode one text for each encoder, as (1, tokens of all chunks, channels of all encoders).

    Shorter texts are filled up with chunks of no text. A longer one is cut if one chunk is
    all there is.
    """
    found = []
    for each, text in zip(encoders, texts, strict=True):
        module = _HiddenStates(
            each.module, spec.state + clip_skip, is_normalized=spec.is_normalized
        )
        provider = _provider(each.tokenizer, module, module.device, is_cut=num_chunks == 1)
        parts, weights = _lists(text)
        embeds = provider.get_embeddings_for_weighted_prompt_fragments(
            [parts], [weights], device=module.device
        )
        length = int(each.tokenizer.model_max_length)
        missing = num_chunks - embeds.shape[1] // length
        filling = [provider.empty_z.to(embeds)] * missing
        found.append(torch.cat([embeds, *filling], dim=1)[:, : num_chunks * length])
    return torch.cat(found, dim=-1)


def _lists(text: WeightedText) -> tuple[list[str], list[float]]:
    return [part for part, _ in text.parts], [weight for _, weight in text.parts]


def _provider(
    tokenizer: Tokenizer, module: _HiddenStates | None, device: object, *, is_cut: bool
) -> EmbeddingsProvider:
    mode = SplitLongTextMode.BRUTAL if is_cut else SplitLongTextMode.WORDS
    return EmbeddingsProvider(
        tokenizer, module, truncate=False, split_long_text_mode=mode, device=device
    )
