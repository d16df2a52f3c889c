"""Tests for a card; `scripts/gpu` runs them. With `--device cpu` those that can, run too."""

from collections.abc import Callable

import pytest
import torch
from support.loading import load, shipped

from pixpod.catalog import Precision
from pixpod.engine.loading import LoadedModel, find_device


def pytest_addoption(parser):
    parser.addoption(
        "--device", choices=("cuda", "cpu"), default="cuda", help="where gpu tests run"
    )


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    """Fails, and does not skip, where a card is asked for and there is none."""
    return find_device(request.config.getoption("--device", default="cuda"))


@pytest.fixture(scope="session")
def cuda(device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("needs CUDA")
    return device


@pytest.fixture(scope="session")
def float8_device(device) -> torch.device:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        pytest.skip("this card has no FP8 arithmetic")
    return device


@pytest.fixture
def load_tiny() -> Callable[[str, Precision, torch.device], LoadedModel]:
    """The trained checkpoints that ship with the source."""
    return lambda name, precision, device: load(name, shipped(name), precision, device)
