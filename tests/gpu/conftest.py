"""Tests for a card; `scripts/gpu` runs them. With `--device cpu` those that can, run too."""

from collections.abc import Callable

import pytest
import torch

from pixpod.catalog import Precision, load_catalog
from pixpod.engine.loading import LoadedModel, find_device, load_model
from pixpod.engine.sources import BakedSource
from pixpod.engine.weights import files_to_read
from pixpod.prefetch import Prefetch, Verify
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.timeline import BootTimeline, since_process_start


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
    def load(name: str, precision: Precision, device: torch.device) -> LoadedModel:
        spec = load_catalog()[name]
        weights = BakedSource(SOURCE_WEIGHTS_DIR).find(spec)
        prefetch = Prefetch(threads=2, verify=Verify.CHUNKS)
        prefetch.add(name, files_to_read(spec, weights))
        timeline = BootTimeline(since_process_start())
        return load_model(spec, weights, precision, device, prefetch, timeline)

    return load
