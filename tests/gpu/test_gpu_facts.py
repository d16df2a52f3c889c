"""What the driver, torch and our table say of the GPU, and whether it is so."""

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

from pixpod.engine.device import Pace
from pixpod.engine.device_probe import cuda_of_torch, probe_gpu
from pixpod.engine.precision.attention import NATIVE, set_attention
from pixpod.engine.precision.float8 import computes_float8
from pixpod.families import Precision
from pixpod.gpus import find_gpu_class

pytestmark = pytest.mark.gpu


def test_driver_agrees_with_torch(cuda):
    probed = probe_gpu(cuda_of_torch())
    properties = torch.cuda.get_device_properties(cuda)
    assert probed.capability == (properties.major, properties.minor)
    assert probed.memory_bytes == pytest.approx(properties.total_memory, rel=0.02)


def test_gpu_computes_float8_if_the_table_says_so(cuda):
    gpu = find_gpu_class(torch.cuda.get_device_capability(cuda))
    assert computes_float8(cuda) == gpu.has_float8(torch.__version__)


def test_attention_of_the_table_runs_here(cuda, load_random):
    wanted = find_gpu_class(torch.cuda.get_device_capability(cuda)).attention
    model = load_random("flux-tiny", Precision.BFLOAT16, cuda)
    assert set_attention(model.components["transformer"], wanted, cuda) == ()


def test_attention_of_the_table_computes_the_same(cuda):
    """As FLUX calls it at 512 px: 24 heads of 128 numbers, 1024 and 512 tokens."""
    wanted = find_gpu_class(torch.cuda.get_device_capability(cuda)).attention
    if wanted == NATIVE:
        pytest.skip("torch's own choice is the best on this GPU")
    generator = torch.Generator(cuda).manual_seed(0)
    query, key, value = (
        torch.randn(1, 1536, 24, 128, device=cuda, generator=generator).to(torch.bfloat16)
        for _ in range(3)
    )
    found = []
    for backend in (NATIVE, wanted):
        with torch.inference_mode(), attention_backend(backend):
            found.append(dispatch_attention_fn(query, key, value).float())
    error = (found[1] - found[0]).norm() / found[0].norm()
    assert error < 0.01


def test_host_is_at_most_one_step_ahead_of_the_gpu(cuda):
    pace, steps = Pace(cuda), []
    for _ in range(4):
        torch.cuda._sleep(100_000_000)  # cycles, about 50 ms
        steps.append(torch.cuda.Event())
        steps[-1].record()
        pace.step()
        assert [step.query() for step in steps] == [True] * (len(steps) - 1) + [False]
