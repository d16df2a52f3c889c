"""Matches a source's tensors with a module's: libraries have renamed theirs over the years."""

import re
from collections.abc import Collection, Iterator, Mapping

from pixpod.errors import WeightsUnreadable

_OLDER: tuple[tuple[str, str], ...] = (
    # CLIPTextModel wrapped its layers until transformers 5
    (r"^", "text_model."),
    # the encoder inside of a language model
    (r"^", "model."),
    # attention in VAEs until diffusers 0.15
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".proj_attn."),
    # T5's embeddings under the other of their two names
    (r"^shared\.", "encoder.embed_tokens."),
)
"""Substitutions from a present name to one that a file may have instead."""


def match_names(wanted: Collection[str], found: Collection[str], source: str) -> Mapping[str, str]:
    """Return the name in the source of each wanted tensor; other tensors are left out.

    Raises WeightsUnreadable if one is missing under all its names; `source` is for the message.
    """
    return {name: _match(name, found, source) for name in wanted}


def _match(name: str, found: Collection[str], source: str) -> str:
    for spelling in _spellings(name):
        if spelling in found:
            return spelling
    raise WeightsUnreadable(f"{source}: has no tensor {name}: is this the right model?")


def _spellings(name: str) -> Iterator[str]:
    yield name
    for today, before in _OLDER:
        if re.search(today, name):
            yield re.sub(today, before, name, count=1)
