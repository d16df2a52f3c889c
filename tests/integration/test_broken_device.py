"""A device that fails while it draws: one that will never compute again must cost one job only."""

import asyncio

import pytest
import torch
from support.factories import make_request

from pixpod.engine.execution import model_runner as drawer
from pixpod.errors import DeviceUnavailable
from pixpod.testing.engines import running_engine

CUDA_ERROR = "CUDA error: an illegal memory access was encountered"


@pytest.fixture(scope="module")
def engine():
    with running_engine({"PIXPOD_DEVICE": "cpu"}) as running:
        yield running


def generate(engine):
    return asyncio.run(engine.generate(make_request()))


def fail(*arguments, **named):
    raise RuntimeError(CUDA_ERROR)


def test_worker_whose_device_is_broken_is_replaced(engine, monkeypatch):
    generate(engine)
    monkeypatch.setattr(drawer, "_call_pipeline", fail)
    monkeypatch.setattr(torch, "ones", fail)  # what it is tried with
    with pytest.raises(DeviceUnavailable, match="cpu does not compute") as caught:
        generate(engine)
    assert caught.value.refresh_worker


def test_worker_whose_device_still_computes_stays(engine, monkeypatch):
    before = generate(engine).images
    with monkeypatch.context() as patch:
        patch.setattr(drawer, "_call_pipeline", fail)
        with pytest.raises(RuntimeError, match=CUDA_ERROR):
            generate(engine)
    assert generate(engine).images == before
