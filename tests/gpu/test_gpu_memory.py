"""Offloaded weights really leave a GPU; a GPU that is too full is noticed and reported."""

import gc

import pytest
import torch

from pixpod.engine.memory.offloading import OffloadableWeights
from pixpod.errors import OutOfMemory
from pixpod.families import Precision
from pixpod.testing.runners import LocalRunner

pytestmark = pytest.mark.gpu

PRECISIONS = [Precision.BFLOAT16, Precision.FLOAT8_DYNAMIC]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_offloaded_model_is_onloaded_with_the_same_bytes(
    load_tiny, generate, make_request, cuda, float8_device, precision
):
    model = load_tiny("flux-tiny", precision, cuda)
    before = generate(model, make_request("flux-tiny"))
    components = [OffloadableWeights(module, cuda) for module in model.components.values()]
    for _ in range(2):
        for weights in components:
            weights.offload()
            assert weights.host_bytes == weights.size_bytes > 0
        for weights in components:
            weights.onload()
    assert generate(model, make_request("flux-tiny")) == before


@pytest.mark.parametrize(
    ("name", "precision"),
    [("sd15", Precision.BFLOAT16), ("flux-tiny", Precision.FLOAT8_DYNAMIC)],
)
def test_offloading_frees_memory_of_the_gpu(load_random, float8_device, cuda, name, precision):
    """As torch counts it and, of gigabytes, as the driver does, which others on the GPU see."""
    model = load_random(name, precision, cuda)
    weights = OffloadableWeights(model.denoiser, cuda)
    gc.collect()
    torch.cuda.empty_cache()
    allocated, free = torch.cuda.memory_allocated(cuda), torch.cuda.mem_get_info(cuda)[0]
    weights.offload()
    freed = allocated - torch.cuda.memory_allocated(cuda)
    assert freed == pytest.approx(weights.size_bytes, rel=0.05)
    if weights.size_bytes > 2**29:
        assert torch.cuda.mem_get_info(cuda)[0] - free > 0.8 * weights.size_bytes
    weights.onload()
    assert torch.cuda.memory_allocated(cuda) == pytest.approx(allocated, rel=0.05)


@pytest.fixture
def memory_hog(cuda):
    """Takes all of the GPU but so many bytes."""
    taken = []

    def leave(free_bytes: int) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        taken.append(
            torch.empty(
                torch.cuda.mem_get_info(cuda)[0] - free_bytes, dtype=torch.uint8, device=cuda
            )
        )

    yield leave
    taken.clear()
    torch.cuda.empty_cache()


def test_batch_that_does_not_fit_is_generated_in_parts_with_a_warning(
    load_random, make_request, memory_hog, cuda
):
    model = load_random("flux-tiny", Precision.BFLOAT16, cuda)
    runner = LocalRunner(model)
    request = make_request("flux-tiny", size_px=1024, seeds=range(8), steps=1)
    expected = runner.generate(request)
    needed_for_eight = _peak_bytes(runner, request, cuda)
    memory_hog(needed_for_eight // 4)
    generated = runner.generate(request)
    assert len(generated.pixels) == len(expected.pixels) == 8
    assert expected.warnings == ()
    assert any("memory was short" in warning for warning in generated.warnings)


def test_image_that_never_fits_is_refused_and_the_next_one_is_generated(
    load_random, make_request, generate, cuda
):
    model = load_random("flux-tiny", Precision.BFLOAT16, cuda)
    before = generate(model, make_request("flux-tiny"))
    gc.collect()
    torch.cuda.empty_cache()
    total_bytes = torch.cuda.get_device_properties(cuda).total_memory
    limit_bytes = torch.cuda.memory_reserved(cuda) + 2**21
    torch.cuda.set_per_process_memory_fraction(limit_bytes / total_bytes, cuda)
    try:
        with pytest.raises(OutOfMemory, match="no memory for an image of 2048x2048"):
            generate(model, make_request("flux-tiny", size_px=2048, seeds=(1, 2)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
    assert generate(model, make_request("flux-tiny")) == before


def _peak_bytes(runner: LocalRunner, request, cuda: torch.device) -> int:
    """What generating takes on top of the weights."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(cuda)
    before = torch.cuda.memory_allocated(cuda)
    runner.generate(request)
    return torch.cuda.max_memory_allocated(cuda) - before
