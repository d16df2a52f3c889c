"""Weights of callers: safetensors only. The header is read first and decides about the rest.

A header that is accepted describes the file completely: its tensors follow each other without
gaps, so that the sizes of the file and of each tensor are known before they are read.
"""

import json
import math
import struct
from dataclasses import dataclass
from typing import NoReturn

from pixpod.errors import WeightsRefused
from pixpod.inputs.refusals import Refused

MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 4
LENGTH_BYTES = 8

BYTES_PER_VALUE = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Accepted types of tensors, as safetensors names them."""

_ACCEPTED = "a safetensors file"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsHeader:
    """The accepted header of a file of `size_bytes`, with the shape of each tensor by name."""

    size_bytes: int
    shapes: dict[str, tuple[int, ...]]


def header_bytes(start: bytes | bytearray) -> int:
    """Return the number of bytes of length and header, from the first LENGTH_BYTES of a file.

    Raises Refused with WeightsRefused.
    """
    if len(start) < LENGTH_BYTES:
        raise _refused(_ACCEPTED, f"a file of {len(start)} bytes")
    (length,) = struct.unpack("<Q", start[:LENGTH_BYTES])
    if length > MAX_HEADER_BYTES:  # any other file has a large number there
        raise _refused(f"{_ACCEPTED} with a header of at most {MAX_HEADER_BYTES} bytes", "another")
    return LENGTH_BYTES + int(length)


def read_weights_header(data: bytes, max_bytes: int) -> WeightsHeader:
    """Check the length and header that begin a file. Raises Refused with WeightsRefused.

    Takes up to half a second.
    """
    size = header_bytes(data)
    if len(data) < size:
        raise _refused(_ACCEPTED, "one that ends in its header")
    tensors = _parse(data[LENGTH_BYTES:size])
    tensors.pop("__metadata__", None)
    if not 1 <= len(tensors) <= MAX_TENSORS:
        raise _refused(f"1 to {MAX_TENSORS} tensors", f"{len(tensors)}")
    ranges = []
    shapes = {}
    for name, entry in tensors.items():
        shapes[name], begin, end = _read_tensor(entry)
        ranges.append((begin, end))
    total = 0
    for begin, end in sorted(ranges):
        if begin != total:
            raise _refused("tensors that follow each other without gaps", "others")
        total = end
    if size + total > max_bytes:
        raise _refused(f"a file of at most {max_bytes} bytes", f"{size + total} bytes")
    return WeightsHeader(size_bytes=size + total, shapes=shapes)


def _parse(text: bytes) -> dict[str, object]:
    try:
        document = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as exc:
        raise _refused(_ACCEPTED, "one whose header is no JSON") from exc
    if not isinstance(document, dict) or not text.startswith(b"{"):
        raise _refused(_ACCEPTED, "one whose header is no JSON object")
    metadata = document.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise _refused("metadata of strings", "others")
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _read_tensor(entry: object) -> tuple[tuple[int, ...], int, int]:
    """Return shape, and begin and end in the data."""
    match entry:
        case {
            "dtype": str(dtype),
            "shape": list(shape),
            "data_offsets": [int(begin), int(end)],
            **others,
        } if not others:
            pass
        case _:
            raise _refused("tensors with dtype, shape and data_offsets only", "others")
    if dtype not in BYTES_PER_VALUE:
        accepted = ", ".join(BYTES_PER_VALUE)
        raise _refused(f"tensors of one of {accepted}", dtype[:20] if dtype.isalnum() else "others")
    if len(shape) > MAX_DIMENSIONS:
        raise _refused(f"tensors of at most {MAX_DIMENSIONS} dimensions", f"{len(shape)}")
    sizes = tuple(size for size in shape if type(size) is int and 0 <= size < 2**63)
    if len(sizes) != len(shape) or type(begin) is not int or type(end) is not int:
        raise _refused("sizes and offsets that are whole numbers", "others")
    if begin < 0 or end - begin != math.prod(sizes) * BYTES_PER_VALUE[dtype]:
        raise _refused("tensors as long as their shapes", "others")
    return sizes, begin, end


def _refused(accepted: str, value: str) -> Refused:
    return Refused(WeightsRefused, accepted, value=value)
