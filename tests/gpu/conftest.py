"""Tests for a GPU; `scripts/gpu` runs them. With `--device cpu` those that can, run too."""

from collections.abc import Callable

import pytest
import torch
from support.loading import load, shipped

from pixpod.catalog import load_catalog
from pixpod.engine.device import find_device
from pixpod.engine.model import LoadedModel
from pixpod.families import Precision
from pixpod.job import GenerationRequest
from pixpod.testing import sample_requests
from pixpod.testing.random_models import build_random_model
from pixpod.testing.runners import LocalRunner
from pixpod_tools.bake.architectures import get_architecture
from pixpod_tools.bake.character_tokenizers import tokenizer_for


def pytest_addoption(parser):
    parser.addoption(
        "--device", choices=("cuda", "cpu"), default="cuda", help="where gpu tests run"
    )


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    """Fails, and does not skip, where a GPU is requested and there is none."""
    return find_device(request.config.getoption("--device", default="cuda"))


@pytest.fixture(scope="session")
def cuda(device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("needs CUDA")
    return device


@pytest.fixture(scope="session")
def float8_device(device) -> torch.device:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        pytest.skip("this GPU has no FP8 arithmetic")
    return device


@pytest.fixture(scope="session")
def load_tiny() -> Callable[[str, Precision, torch.device], LoadedModel]:
    """The trained checkpoints that ship with the source."""
    return lambda name, precision, device: load(name, shipped(name), precision, device)


@pytest.fixture(scope="session")
def load_random() -> Callable[[str, Precision, torch.device], LoadedModel]:
    """An architecture with random weights."""
    catalog = load_catalog()
    return lambda name, precision, device: build_random_model(
        get_architecture(name), tokenizer_for, catalog[name], precision, device
    )


@pytest.fixture(scope="session")
def make_request() -> Callable[..., GenerationRequest]:
    """A request for a tiny model: 64 px and 4 steps unless said."""

    def make(model: str, size_px: int = 64, steps: int = 4, seeds=(0,)) -> GenerationRequest:
        spec = load_catalog()[model]
        return sample_requests.make_request(
            spec, size_px=size_px, num_inference_steps=steps, seeds=tuple(seeds)
        )

    return make


@pytest.fixture(scope="session")
def generate() -> Callable[[LoadedModel, GenerationRequest], list[bytes]]:
    """Pixels of each image, generated as the device's thread of a worker does."""

    def generate(model: LoadedModel, request: GenerationRequest) -> list[bytes]:
        return list(LocalRunner(model).generate(request).pixels)

    return generate
