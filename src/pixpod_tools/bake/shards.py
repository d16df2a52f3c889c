"""Writes safetensors shards with one tensor in memory at a time.

The library's own `save_file` takes all tensors of a file at once. Format:
https://github.com/huggingface/safetensors#format. Knows nothing of models.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

DTYPE_NAMES: Mapping[torch.dtype, str] = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
}
"""The dtypes that may be stored, with safetensors' names."""

MAX_SHARD_BYTES = 4_000_000_000
"""Files of this size are read in parallel and spread well over the layers of an image."""

_ALIGNED_BYTES = 64
"""Alignment of most tensors: a cache line, which suffices for all of a GPU's kernels."""

_PAGE_BYTES = 4096

Progress = Callable[[int], object]
"""Called with the number of bytes of tensors written since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor:
    """One entry of a module's `state_dict()` and its parts in a file.

    More than one part, e.g. FP8 values and their scales, stay in one shard.
    """

    name: str
    parts: tuple[StoredTensor, ...]

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)


Read = Callable[[PlannedTensor], Mapping[str, torch.Tensor]]
"""Returns the parts of a planned tensor by their names; called once for each tensor."""


def write_shards(
    folder: Path,
    stem: str,
    tensors: Sequence[PlannedTensor],
    read: Read,
    *,
    metadata: Mapping[str, str],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress,
) -> None:
    """Write `<stem>.safetensors`, or numbered shards and their index, in the order given.

    Each shard gets the whole metadata. Within a shard, tensors of a size that would put the
    next one off its alignment come last.
    """
    shards = plan_shards(tensors, max_shard_bytes)
    names = _file_names(stem, len(shards))
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            _write_shard(file, shard, read, metadata, progress)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.size_bytes for tensor in tensors)},
            "weight_map": {
                part.name: name
                for name, shard in zip(names, shards, strict=True)
                for tensor in shard
                for part in tensor.parts
            },
        }
        text = json.dumps(index, indent=2) + "\n"
        (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")


def plan_shards(
    tensors: Sequence[PlannedTensor], max_shard_bytes: int
) -> list[list[PlannedTensor]]:
    """Cut the sequence so that no shard's data is larger, unless it is a single tensor's."""
    shards: list[list[PlannedTensor]] = [[]]
    used_bytes = 0
    for tensor in tensors:
        if shards[-1] and used_bytes + tensor.size_bytes > max_shard_bytes:
            shards.append([])
            used_bytes = 0
        shards[-1].append(tensor)
        used_bytes += tensor.size_bytes
    return [sorted(shard, key=_place) for shard in shards]


def _place(tensor: PlannedTensor) -> tuple[bool, int]:
    """Return a sort key: odd sizes last, and wide elements before narrow ones, so that each tensor
    begins at a multiple of its element size.
    """
    is_odd = any(part.size_bytes % _ALIGNED_BYTES for part in tensor.parts)
    return is_odd, -min(part.dtype.itemsize for part in tensor.parts) if is_odd else 0


def _file_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]


def _write_shard(
    file: IO[bytes],
    tensors: Sequence[PlannedTensor],
    read: Read,
    metadata: Mapping[str, str],
    progress: Progress,
) -> None:
    header = _header(tensors, metadata)
    file.write(struct.pack("<Q", len(header)) + header)
    for tensor in tensors:
        parts = read(tensor)
        for part in tensor.parts:
            file.write(_bytes_of(parts[part.name], part))
            progress(part.size_bytes)


def _header(tensors: Sequence[PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    fields: dict[str, object] = {"__metadata__": dict(metadata)}
    for part, offset in _offsets(tensors):
        fields[part.name] = {
            "dtype": DTYPE_NAMES[part.dtype],
            "shape": part.shape,
            "data_offsets": [offset, offset + part.size_bytes],
        }
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    # data begins at a page, so that alignment in the file is alignment in a mapping
    return text + b" " * (-(8 + len(text)) % _PAGE_BYTES)


def _offsets(tensors: Sequence[PlannedTensor]) -> Iterator[tuple[StoredTensor, int]]:
    offset = 0
    for tensor in tensors:
        for part in tensor.parts:
            yield part, offset
            offset += part.size_bytes


def _bytes_of(tensor: torch.Tensor, part: StoredTensor) -> memoryview:
    assert (tensor.dtype, tuple(tensor.shape)) == (part.dtype, part.shape), part.name
    # numpy has no bfloat16 and no float8
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data
