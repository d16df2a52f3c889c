"""Weights that are changed in place leave the device and come back as they were left."""

import pytest
import torch
from torch import nn

from pixpod.engine.memory.offloading import OffloadableWeights

CPU = torch.device("cpu")


@pytest.fixture
def layer():
    layer = nn.Linear(8, 8).requires_grad_(False)
    layer.weight.data = torch.zeros(8, 8)
    return layer


def leave_and_return(weights):
    weights.offload()
    assert all(p.untyped_storage().nbytes() == 0 for p in weights.module.parameters())
    weights.onload()


def merge(layer):
    """As PEFT merges an adapter, which autograd's version counters do not see."""
    version = layer.weight._version
    layer.weight.data += 1.0
    assert layer.weight._version == version


def unmerge(layer):
    layer.weight.data -= 1.0


def test_weight_that_is_changed_in_place_keeps_its_change(layer):
    weights = OffloadableWeights(layer, CPU)
    leave_and_return(weights)
    merge(layer)
    leave_and_return(weights)
    assert torch.equal(layer.weight, torch.ones(8, 8))


def test_change_that_was_undone_does_not_come_back(layer):
    weights = OffloadableWeights(layer, CPU)
    merge(layer)
    leave_and_return(weights)
    unmerge(layer)
    leave_and_return(weights)
    assert torch.equal(layer.weight, torch.zeros(8, 8))


def test_changed_weights_take_the_place_of_their_old_copy(layer):
    weights = OffloadableWeights(layer, CPU)
    weights.copy_to_host()
    before = weights.host_bytes
    merge(layer)
    weights.copy_to_host()
    assert weights.host_bytes == before == weights.size_bytes


@pytest.mark.parametrize("num_bytes", [1, 4, 7, 8, 9, 20, 4097])
def test_each_byte_of_a_weight_counts(num_bytes):
    module = nn.Module()
    module.register_buffer("weight", torch.zeros(num_bytes, dtype=torch.uint8))
    weights = OffloadableWeights(module, CPU)
    expected = torch.zeros(num_bytes, dtype=torch.uint8)
    for index in {0, num_bytes // 2, num_bytes - 1}:
        leave_and_return(weights)
        module.get_buffer("weight")[index] = expected[index] = 200
        leave_and_return(weights)
        assert torch.equal(module.get_buffer("weight"), expected)


def swap_two_words(values):
    values[[0, 1, 2, 3]] = values[[2, 3, 0, 1]]


def swap_two_rows(values):
    rows = values.view(-1, 64)
    rows[[0, 1]] = rows[[1, 0]]


def reverse(values):
    values.copy_(values.flip(0))


def swap_distant_values(values):
    values[[5, -5]] = values[[-5, 5]]


def flip_two_signs(values):
    """Of the upper halves of two 64-bit words: their sum modulo 2^64 is the same as before."""
    values[1::2][:2].neg_()


@pytest.mark.parametrize(
    "change", [swap_two_words, swap_two_rows, reverse, swap_distant_values, flip_two_signs]
)
@pytest.mark.parametrize("size", [128, 2 * 4096 + 64, 5 * 8192])
def test_change_that_keeps_the_sum_is_a_change(change, size):
    module = nn.Module()
    module.register_buffer("weight", torch.randn(size, generator=torch.Generator().manual_seed(0)))
    weights = OffloadableWeights(module, CPU)
    leave_and_return(weights)
    weight = module.get_buffer("weight")
    before = weight.clone()
    change(weight)
    expected = weight.clone()
    assert not torch.equal(before, expected)
    leave_and_return(weights)
    assert torch.equal(module.get_buffer("weight"), expected)
