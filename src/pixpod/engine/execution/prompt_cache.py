"""Text embeddings of the prompts that were asked for last, so that a parked encoder stays parked.

They lie in host memory, page-locked beside a card: one of FLUX with 512 tokens takes 4.2 MB, and
comes in less than a millisecond. No text is kept, only its digest.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pixpod.engine.execution.family_calls import Arguments
from pixpod.engine.loading.pipelines import LoadedModel
from pixpod.job import GenerationRequest


@dataclass(frozen=True, slots=True)
class PromptKey:
    """All that an embedding depends on: the encoders, and a digest of the texts and of how they
    are read.
    """

    model: str
    revision: str
    weights: str
    digest: bytes


class PromptCache:
    """Least recently used first out, by bytes; `max_bytes` 0 keeps nothing. For one thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[PromptKey, Arguments] = OrderedDict()
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0

    def key(self, model: LoadedModel, request: GenerationRequest) -> PromptKey:
        """The same for requests whose embeddings are the same, whatever else they ask for."""
        read = (
            request.prompt,
            request.prompt_2,
            request.negative_prompt,
            request.max_sequence_length,
            _is_guided(request.guidance_scale),
            _is_guided(request.true_cfg_scale),
        )
        return PromptKey(
            model=model.spec.name,
            revision=model.identity.revision,
            weights=model.identity.weights,
            digest=hashlib.sha256(json.dumps(read).encode()).digest(),
        )

    def get_or_encode(
        self, key: PromptKey, encode: Callable[[], Arguments], device: torch.device
    ) -> Arguments:
        """The embeddings on the device: kept ones, byte for byte, or new ones.

        Raises what `encode` raises.
        """
        kept = self._entries.get(key)
        if kept is not None:
            self.hits += 1
            self._entries.move_to_end(key)
            return _to_device(kept, device)
        self.misses += 1
        fresh = encode()
        if _count_bytes(fresh) <= self._max_bytes:
            self._keep(key, _to_host(fresh))
        return fresh

    def _keep(self, key: PromptKey, entry: Arguments) -> None:
        self._entries[key] = entry
        self.size_bytes += _count_bytes(entry)
        while self.size_bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.size_bytes -= _count_bytes(oldest)


def _is_guided(scale: float | None) -> bool:
    """With guidance there is a second embedding; how strong it is does not matter."""
    return scale is not None and scale > 1


def _count_bytes(entry: Arguments) -> int:
    return sum(value.nbytes for value in entry.values() if isinstance(value, torch.Tensor))


def _to_host(entry: Arguments) -> Arguments:
    return {
        name: _pinned_copy(value) if isinstance(value, torch.Tensor) else value
        for name, value in entry.items()
    }


def _pinned_copy(value: torch.Tensor) -> torch.Tensor:
    is_on_card = value.device.type == "cuda"
    copy = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=is_on_card)
    return copy.copy_(value)


def _to_device(entry: Arguments, device: torch.device) -> Arguments:
    return {
        name: value.to(device, non_blocking=True, copy=True)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in entry.items()
    }
