"""Gives modules that were built without memory parameters that are views of a file's bytes.

One pass over the tensors of a file. torchao's own `unflatten_tensor_state_dict` compares each name
with each key, which takes most of a second for a FLUX transformer.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pixpod.engine.precision.float8 import tensor_from_description
from pixpod.errors import WeightsUnreadable

MAX_HEADER_BYTES = 100_000_000
"""The limit of safetensors itself."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes that our files and those of repositories may have, by safetensors' names."""


class NamesDiffer(Exception):
    """A file's tensors are not those of the module; a repository may use older names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """A safetensors file: its tensors by name, as views of its bytes, and its metadata."""

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]


class WithoutValues(TorchFunctionMode):
    """A mode in which modules are built on the meta device without random numbers: generating these
    for parameters that have no memory takes half of the time. Applies to one thread, unlike
    patches of torch.nn.init.

    Ranges are made on the CPU first, because torch imports sympy for one on the meta device.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        if func is torch.arange:
            return torch.arange(*args, **{**kwargs, "device": "cpu"}).to("meta")
        return func(*args, **kwargs)


def open_tensors(data: torch.Tensor, header: bytes, name: str) -> TensorFile:
    """Return a file's tensors as views of `data`.

    `data` is the whole file as uint8 on any device, `header` is its JSON.

    Raises WeightsUnreadable if the header and the bytes do not fit each other.
    """
    try:
        fields = json.loads(header)
        metadata = fields.pop("__metadata__", {})
        body = data[8 + len(header) :]
        tensors = {key: _view(body, **field) for key, field in fields.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as exc:
        raise WeightsUnreadable(f"{name}: is no safetensors file that can be read") from exc
    return TensorFile(tensors=tensors, metadata=metadata)


def read_header(data: memoryview, name: str) -> bytes:
    """Return the JSON of a safetensors file. Raises WeightsUnreadable if it is not complete."""
    size_bytes = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 2 <= size_bytes <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise WeightsUnreadable(f"{name}: has no header of a safetensors file")
    return bytes(data[8 : 8 + size_bytes])


def _view(
    body: torch.Tensor, *, dtype: str, shape: list[int], data_offsets: list[int]
) -> torch.Tensor:
    begin, end = data_offsets
    if not 0 <= begin <= end <= len(body):
        raise ValueError("data_offsets")
    raw = body[begin:end]
    kind = DTYPES[dtype]
    if raw.storage_offset() % kind.itemsize:
        raw = raw.clone()  # a view must start at a multiple of its own size
    return raw.view(kind).view(shape)


def assemble(file: TensorFile) -> dict[str, torch.Tensor]:
    """Return a file's tensors by the names of a module, with torchao's parts put together."""
    names = file.metadata.get("tensor_names")
    if names is None:
        return dict(file.tensors)
    return dict(_assemble_torchao(file, json.loads(names)))


def _assemble_torchao(file: TensorFile, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a shard's torchao tensors. Its header names all tensors; those of other shards are left
    out.
    """
    for name in names:
        described = json.loads(file.metadata[name])
        if described["_type"] == "Tensor":
            if name in file.tensors:
                yield name, file.tensors[name]
            continue
        owner, _, leaf = name.rpartition(".")
        parts = {
            part: tensor
            for part in described["_tensor_data_names"]
            if (tensor := file.tensors.get(f"{owner}._{leaf}_{part}")) is not None
        }
        if len(parts) == len(described["_tensor_data_names"]):
            described["_data"] |= parts
            yield name, tensor_from_description(described)


def bind(module: nn.Module, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Give a module built on the meta device these tensors as its parameters, frozen.

    16-bit and wider ones are cast to `dtype` where they are stored in another; a tied weight
    may be missing as long as its twin is there. Raises NamesDiffer if anything else is missing
    or left over.
    """
    # layers that overflow in float16, as both libraries name them, e.g. T5's `wo`
    named = getattr(module, "_keep_in_fp32_modules", None) or ()
    wide = {*named} if dtype is torch.float16 else set()
    given = {
        name: _cast(tensor, torch.float32 if {*name.split(".")} & wide else dtype)
        for name, tensor in tensors.items()
    }
    for twins in _tied(module):
        present = next((given[name] for name in twins if name in given), None)
        if present is not None:
            given |= dict.fromkeys(twins, present)
    try:
        missing, unexpected = module.load_state_dict(given, strict=False, assign=True)
    except RuntimeError as exc:  # shapes
        raise NamesDiffer(str(exc)) from exc
    if missing or unexpected:
        raise NamesDiffer(f"missing {missing[:3]}, unexpected {unexpected[:3]}")
    _fill_buffers(module, next(iter(given.values())).device)
    module.requires_grad_(False).eval()


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    is_plain = type(tensor) is torch.Tensor and tensor.dtype.is_floating_point
    if not is_plain or tensor.dtype.itemsize == 1:
        return tensor
    return tensor.to(dtype)


def _tied(module: nn.Module) -> Iterator[list[str]]:
    """Yield names that share one parameter, e.g. T5's `shared` and `encoder.embed_tokens`."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return (shared for shared in names.values() if len(shared) > 1)


def _fill_buffers(module: nn.Module, device: torch.device) -> None:
    """Make the buffers that no file has. Raises NamesDiffer for an unknown buffer."""
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if not buffer.is_meta:
                continue
            if name == "position_ids":
                positions = torch.arange(buffer.shape[-1], device=device, dtype=buffer.dtype)
                setattr(owner, name, positions.expand(buffer.shape))
            elif type(owner).__name__.endswith("RotaryEmbedding"):
                made = type(owner)(owner.config)  # of transformers: computed from the config alone
                setattr(owner, name, getattr(made, name).to(device))
            else:
                raise NamesDiffer(f"buffer {name} of {type(owner).__name__}")
