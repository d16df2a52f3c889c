"""Tests for a card; `scripts/gpu` runs them. With `--device cpu` those that can, run too."""

from collections.abc import Callable

import pytest
import torch

from pixpod.catalog import Precision, load_catalog
from pixpod.engine.loading import LoadedModel, find_device, load_model
from pixpod.engine.weights import Manifest
from pixpod.settings import SOURCE_WEIGHTS_DIR


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


@pytest.fixture(scope="session")
def tiny_weights() -> Manifest:
    """The trained checkpoints that ship with the source."""
    return Manifest.read(SOURCE_WEIGHTS_DIR)


@pytest.fixture
def load_tiny(tiny_weights) -> Callable[[str, Precision, torch.device], LoadedModel]:
    def load(name: str, precision: Precision, device: torch.device) -> LoadedModel:
        spec = load_catalog()[name]
        return load_model(spec, tiny_weights.get_weights(spec), precision, device)

    return load
