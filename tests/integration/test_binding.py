"""Modules bound to the bytes of a file, against what the libraries' own loaders make of it."""

import json
import struct
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from pixpod.engine.loading.binding import (
    NamesDiffer,
    assemble,
    bind,
    open_tensors,
    read_header,
)
from pixpod.engine.loading.device_memory import copy_to_device, file_bytes
from pixpod.errors import WeightsUnreadable
from pixpod.weights.manifest import WeightFile
from pixpod.weights.prefetch import Prefetch, Verify

CPU = torch.device("cpu")


def as_bytes(data):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def opened(data):
    header = read_header(memoryview(data), "file")
    return open_tensors(as_bytes(data), header, "file")


def meta_linear(**changes):
    with torch.device("meta"):
        return nn.Linear(3, 2, **changes)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool],
)
def test_tensors_are_those_that_safetensors_wrote(dtype):
    value = torch.arange(12).reshape(3, 4).to(dtype)
    found = opened(save({"a": value, "scalar": torch.tensor(2.5)})).tensors
    assert found["a"].dtype is dtype
    assert torch.equal(found["a"].float(), value.float())
    assert found["scalar"].shape == ()


def test_tensor_at_an_odd_place_is_copied():
    header = json.dumps(
        {
            "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "float": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
        }
    ).encode()
    data = struct.pack("<Q", len(header)) + header + b"\x07" + struct.pack("<f", 1.5)
    found = opened(data).tensors
    assert found["float"].item() == 1.5


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_cut_file_is_refused(data):
    whole = save({"a": torch.arange(10), "b": torch.ones(3)})
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(WeightsUnreadable):
        opened(cut)


@pytest.mark.parametrize(
    "field",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1},
        [],
    ],
)
def test_header_that_lies_is_refused(field):
    header = json.dumps({"a": field}).encode()
    with pytest.raises(WeightsUnreadable):
        opened(struct.pack("<Q", len(header)) + header + bytes(4))


def test_bound_module_computes_with_the_files_values():
    weight, bias = torch.randn(2, 3), torch.randn(2)
    module = meta_linear()
    bind(module, {"weight": weight, "bias": bias}, torch.float32)
    inputs = torch.randn(4, 3)
    assert torch.equal(module(inputs), nn.functional.linear(inputs, weight, bias))
    assert module.weight.data_ptr() == weight.data_ptr(), "no copy where none is needed"
    assert not module.weight.requires_grad
    assert not module.training


def test_other_width_is_cast():
    module = meta_linear()
    given_ = {"weight": torch.ones(2, 3, dtype=torch.bfloat16), "bias": torch.ones(2).bfloat16()}
    bind(module, given_, torch.float32)
    assert module.weight.dtype is torch.float32


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.ones(2, 3)},
        {"weight": torch.ones(2, 3), "bias": torch.ones(2), "more": torch.ones(1)},
        {"weight": torch.ones(3, 2), "bias": torch.ones(2)},
    ],
)
def test_other_names_or_shapes_are_said(tensors):
    with pytest.raises(NamesDiffer):
        bind(meta_linear(), tensors, torch.float32)


def test_unknown_buffer_is_said():
    module = meta_linear()
    module.register_buffer("table", torch.empty(2, device="meta"), persistent=False)
    with pytest.raises(NamesDiffer, match="buffer table"):
        bind(module, {"weight": torch.ones(2, 3), "bias": torch.ones(2)}, torch.float32)


def test_tied_weight_may_be_left_out():
    with torch.device("meta"):
        module: Any = nn.ModuleDict(
            {"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)}
        )
    module["b"].weight = module["a"].weight
    bind(module, {"a.weight": torch.eye(2)}, torch.float32)
    assert torch.equal(module["b"].weight, torch.eye(2))


def test_layers_that_overflow_stay_in_float32():
    with torch.device("meta"):
        module: Any = nn.ModuleDict(
            {"wo": nn.Linear(2, 2, bias=False), "wi": nn.Linear(2, 2, bias=False)}
        )
    module._keep_in_fp32_modules = ["wo"]
    bind(module, {"wo.weight": torch.eye(2), "wi.weight": torch.eye(2)}, torch.float16)
    assert module["wo"].weight.dtype is torch.float32
    assert module["wi"].weight.dtype is torch.float16


def test_part_of_a_torchao_tensor_waits_for_its_other_shard():
    metadata = {
        "tensor_names": json.dumps(["here", "elsewhere"]),
        "here": json.dumps({"_type": "Tensor"}),
        "elsewhere": json.dumps({"_type": "Tensor"}),
    }
    file = opened(save({"here": torch.ones(1)}, metadata=metadata))
    assert list(assemble(file)) == ["here"]


@pytest.mark.parametrize("threads", [1, 4])
def test_copy_to_the_device_is_the_file(tmp_path, threads, monkeypatch):
    """The way to a GPU, with a CPU's memory in the place of the GPU's."""
    monkeypatch.setattr("pixpod.engine.loading.device_memory.BUFFER_BYTES", 1000)
    monkeypatch.setattr("pixpod.engine.loading.device_memory.COPYING_THREADS", threads)
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.randn(1234)}, path)
    prefetch = Prefetch(threads=2, verify=Verify.CHUNKS)
    size_bytes = path.stat().st_size
    prefetch.add("model", {path: WeightFile(path="", size_bytes=size_bytes, sha256="")})
    copied = copy_to_device(prefetch, path, CPU)
    mapped = file_bytes(prefetch, path, CPU)
    assert torch.equal(copied, mapped)
    assert copied.data_ptr() != mapped.data_ptr()
    assert bytes(copied.numpy()) == path.read_bytes()
    prefetch.stop()
