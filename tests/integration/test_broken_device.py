"""A device that fails in a batch: one that will never compute again must cost one job only."""

import pytest
import torch
from support import loading
from support.factories import make_request

from pixpod.errors import DeviceUnavailable
from pixpod.families import Precision
from pixpod.testing.runners import LocalRunner

CPU = torch.device("cpu")
CUDA_ERROR = "CUDA error: an illegal memory access was encountered"
REQUEST = make_request()


def fail(*arguments, **named):
    raise RuntimeError(CUDA_ERROR)


@pytest.fixture
def runner():
    return LocalRunner(
        loading.load("sdxl-tiny", loading.shipped("sdxl-tiny"), Precision.FLOAT32, CPU)
    )


def test_worker_whose_device_is_broken_is_replaced(runner, monkeypatch):
    runner.generate(REQUEST)
    runner.model.denoiser.register_forward_pre_hook(fail)
    monkeypatch.setattr(torch, "ones", fail)  # what it is tried with
    with pytest.raises(DeviceUnavailable, match="cpu does not compute") as caught:
        runner.generate(REQUEST)
    assert caught.value.refresh_worker


def test_worker_whose_device_still_computes_stays(runner):
    before = runner.generate(REQUEST).pixels
    hook = runner.model.denoiser.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match=CUDA_ERROR):
        runner.generate(REQUEST)
    hook.remove()
    assert runner.generate(REQUEST).pixels == before
