"""The text side of the three families: tokenizers and encoders, wired as their pipelines do it.

Each stack reads captions into what its image model is conditioned on, `(sequence, pooled)`; the
training loops and the caption classifier (`pretrain`) use nothing else of it.
"""

from typing import Protocol

import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from pixpod_tools.tiny.tokenizers import build_clip_tokenizer, build_t5_tokenizer

WIDTH = 64
"""Width of every text encoder, and of the pooled vector."""

Conditioning = tuple[torch.Tensor, torch.Tensor]
"""Sequence (batch x tokens x channels) and pooled vector (batch x WIDTH)."""


class TextStack(Protocol):
    """What a family reads captions with."""

    sequence_width: int

    def read(self, captions: list[str], max_tokens: int) -> Conditioning:
        """Encode as the family's pipeline would; `max_tokens` matters only to T5."""
        ...

    def encoders(self) -> nn.ModuleList: ...


class FluxText:
    """CLIP for the pooled vector, T5 for the sequence."""

    sequence_width = WIDTH

    def __init__(self) -> None:
        self.tokenizer, self.tokenizer_2 = build_clip_tokenizer(), build_t5_tokenizer()
        self.text_encoder = CLIPTextModel(_clip_config(self.tokenizer, layers=2))
        self.text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=-(-len(self.tokenizer_2) // 16) * 16,
                d_model=WIDTH,
                d_kv=16,
                d_ff=2 * WIDTH,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                is_encoder_decoder=False,
                use_cache=False,
                pad_token_id=self.tokenizer_2.pad_token_id,
                eos_token_id=self.tokenizer_2.eos_token_id,
            )
        )
        with torch.no_grad():
            self.text_encoder_2.shared.weight.mul_(0.3)  # T5 starts far too loud for this width

    def read(self, captions: list[str], max_tokens: int) -> Conditioning:
        ids = self.tokenizer(
            captions, padding="longest", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids
        ids_2 = self.tokenizer_2(
            captions,
            padding="max_length",
            truncation=True,
            max_length=max_tokens,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder_2(ids_2)[0], self.text_encoder(ids).pooler_output

    def encoders(self) -> nn.ModuleList:
        return nn.ModuleList([self.text_encoder, self.text_encoder_2])


class SdxlText:
    """Two CLIPs side by side, both read one layer before their last."""

    sequence_width = 2 * WIDTH

    def __init__(self) -> None:
        self.tokenizer = build_clip_tokenizer()
        self.text_encoder = CLIPTextModel(_clip_config(self.tokenizer, layers=3))
        self.text_encoder_2 = CLIPTextModelWithProjection(
            _clip_config(self.tokenizer, layers=3, activation="gelu")
        )

    def read(self, captions: list[str], max_tokens: int) -> Conditioning:
        ids = _clip_ids(self.tokenizer, captions)
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids, output_hidden_states=True)
        sequence = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return sequence, second.text_embeds

    def encoders(self) -> nn.ModuleList:
        return nn.ModuleList([self.text_encoder, self.text_encoder_2])


class Sd15Text:
    """One CLIP, read after its last layer; the pooled vector serves the classifier only."""

    sequence_width = WIDTH

    def __init__(self) -> None:
        self.tokenizer = build_clip_tokenizer()
        self.text_encoder = CLIPTextModel(_clip_config(self.tokenizer, layers=3))

    def read(self, captions: list[str], max_tokens: int) -> Conditioning:
        encoded = self.text_encoder(_clip_ids(self.tokenizer, captions))
        return encoded.last_hidden_state, encoded.pooler_output

    def encoders(self) -> nn.ModuleList:
        return nn.ModuleList([self.text_encoder])


def _clip_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    ids: torch.Tensor = tokenizer(
        captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    return ids


def _clip_config(
    tokenizer: CLIPTokenizer, layers: int, activation: str = "quick_gelu"
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=WIDTH,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
