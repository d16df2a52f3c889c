"""safetensors files as callers may send them."""

import json
import struct

F16_PAIR = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}


def file_of(header, data=bytes(4), *, length=None):
    """A file with a header: a dict, or text that stands for itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(**changes):
    return {"a": {**F16_PAIR, **changes}}


def tensors(num):
    """Adjacent tensors of one value each, and their data."""
    header = {
        f"t{n}": {"dtype": "F16", "shape": [1], "data_offsets": [2 * n, 2 * n + 2]}
        for n in range(num)
    }
    return file_of(header, bytes(2 * num))


def two(*offsets, size=4):
    """A file of two tensors with these offsets."""
    names = ("a", "b")
    return file_of(
        {
            name: {"dtype": "F16", "shape": [(end - begin) // 2], "data_offsets": [begin, end]}
            for name, (begin, end) in zip(names, offsets, strict=True)
        },
        bytes(size),
    )


GOOD = {
    "one tensor": file_of(tensor()),
    "metadata": file_of({"__metadata__": {"format": "pt"}, **tensor()}),
    "spaces behind the header": file_of(json.dumps(tensor()).encode() + b"   "),
    "a scalar": file_of(tensor(shape=[], data_offsets=[0, 2]), bytes(2)),
    "no values": file_of(tensor(shape=[0, 8], data_offsets=[0, 0]), b""),
    "float8": file_of(tensor(dtype="F8_E4M3", shape=[4])),
    "bfloat16": file_of(tensor(dtype="BF16")),
    "float32": file_of(tensor(dtype="F32", shape=[1])),
    "four dimensions": file_of(tensor(shape=[1, 2, 1, 1])),
    "two tensors in another order": two((2, 4), (0, 2)),
    "20,000 tensors": tensors(20_000),
}

_LIE = "tensors as long as their shapes"
_GAPS = "tensors that follow each other without gaps"
_NUMBERS = "sizes and offsets that are whole numbers"
_ENTRY = "tensors with dtype, shape and data_offsets only"

HOSTILE = {
    "empty file": (b"", "a safetensors file"),
    "seven bytes": (bytes(7), "a safetensors file"),
    "pickle": (b"\x80\x02}q\x00(X\x05\x00\x00\x00model", "a header of at most 8388608 bytes"),
    "zip of torch": (b"PK\x03\x04" + bytes(99), "a safetensors file"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(99), "a header of at most 8388608 bytes"),
    "web page": (b"<!doctype html><html>", "a header of at most 8388608 bytes"),
    "header of 16 exabytes": (file_of(tensor(), length=2**64 - 1), "a header of at most"),
    "header of 8 MiB and a byte": (file_of(tensor(), length=2**23 + 1), "a header of at most"),
    "header that is cut": (file_of(tensor(), length=5_000), "as long as its header says"),
    "header of no bytes": (file_of(b""), "a safetensors file"),
    "header of zeros": (file_of(bytes(100)), "a safetensors file"),
    "header that is a list": (file_of(b"[]"), "a safetensors file"),
    "header that is no UTF-8": (file_of(b'{"\xff": 1}'), "a safetensors file"),
    "header behind a space": (file_of(b" " + json.dumps(tensor()).encode()), "a safetensors file"),
    "header of brackets": (file_of(b'{"a":' + b"[" * 1_000_000), "a safetensors file"),
    "header with a name twice": (
        file_of(b'{"a":' + json.dumps(F16_PAIR).encode() + b',"a":{}}'),
        "a safetensors file",
    ),
    "header with NaN": (file_of(b'{"a": NaN}'), "a safetensors file"),
    "no tensor": (file_of({"__metadata__": {"format": "pt"}}, b""), "1 to 20000 tensors"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}, **tensor()}), "metadata of strings"),
    "metadata that is a list": (file_of({"__metadata__": [], **tensor()}), "metadata of strings"),
    "20,001 tensors": (tensors(20_001), "1 to 20000 tensors"),
    "100,000 tensors": (tensors(100_000), "1 to 20000 tensors"),
    "tensor that is a number": (file_of({"a": 1}), _ENTRY),
    "tensor without a shape": (
        file_of({"a": {"dtype": "F16", "data_offsets": [0, 4]}}),
        _ENTRY,
    ),
    "tensor with more": (file_of(tensor(more=1)), _ENTRY),
    "type of integers": (file_of(tensor(dtype="I16")), "tensors of one of F32, F16, BF16"),
    "type of booleans": (file_of(tensor(dtype="BOOL", shape=[4])), "tensors of one of"),
    "type that is unknown": (file_of(tensor(dtype="F16; rm")), "tensors of one of"),
    "five dimensions": (file_of(tensor(shape=[1, 1, 1, 1, 2])), "at most 4 dimensions"),
    "1,000 dimensions": (
        file_of(tensor(shape=[1] * 1_000, data_offsets=[0, 2]), bytes(2)),
        "at most 4 dimensions",
    ),
    "size that is negative": (file_of(tensor(shape=[-2])), _NUMBERS),
    "size that is a fraction": (file_of(tensor(shape=[2.0])), _NUMBERS),
    "size that is true": (file_of(tensor(shape=[True, 2])), _NUMBERS),
    "size that overflows": (file_of(tensor(shape=[2**63, 2])), _NUMBERS),
    "size that overflows twice": (file_of(tensor(shape=[2**62, 2**62, 4])), _LIE),
    "shape longer than the data": (file_of(tensor(shape=[3])), _LIE),
    "offsets backwards": (file_of(tensor(data_offsets=[4, 0])), _LIE),
    "offsets that are negative": (file_of(tensor(data_offsets=[-4, 0])), _LIE),
    "offsets that are text": (file_of(tensor(data_offsets=["0", "4"])), _ENTRY),
    "offsets that are false": (file_of(tensor(data_offsets=[False, 4])), _NUMBERS),
    "three offsets": (file_of(tensor(data_offsets=[0, 4, 8])), _ENTRY),
    "tensors that overlap": (two((0, 4), (2, 6), size=6), _GAPS),
    "tensors that are the same": (two((0, 4), (0, 4)), _GAPS),
    "tensors with a gap": (two((0, 2), (4, 6), size=6), _GAPS),
    "data that begins late": (file_of(tensor(data_offsets=[2, 6]), bytes(6)), _GAPS),
    "a file of 3 GB": (
        file_of(tensor(shape=[1_500_000_000], data_offsets=[0, 3_000_000_000])),
        "a file of at most 2147483648 bytes",
    ),
    "data that is cut": (file_of(tensor(), bytes(3)), "as long as its header says"),
    "data that goes on": (file_of(tensor(), bytes(9)), "as long as its header says"),
}
"""Files and a part of what their refusal says."""

ONLY_OURS = {
    "20,001 tensors",
    "100,000 tensors",
    "type of integers",
    "type of booleans",
    "five dimensions",
    "1,000 dimensions",
    "no tensor",
    "header behind a space",
    "tensor with more",
}
"""Those that the library itself takes."""
