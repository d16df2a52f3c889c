"""A device whose memory is short: each fallback, on a model whose modules fail on order."""

import pytest
import torch
from support import loading
from support.factories import make_request
from support.graphs import Graphs

from pixpod.engine.compilation.cuda_graphs import GraphedRegion
from pixpod.engine.compilation.regions import Call
from pixpod.errors import OutOfMemory
from pixpod.families import Precision
from pixpod.testing.runners import LocalRunner

CPU = torch.device("cpu")
BATCH = make_request(seeds=(1, 2, 3, 4), guidance_scale=1.0, num_inference_steps=1)
"""Its denoiser is called once, with one row for each image."""


class Shortage:
    """A hook: fails calls of a module with more rows than fit, and some calls more."""

    def __init__(self) -> None:
        self.num_failures = 0
        self.max_rows = 8
        self.calls: list[int] = []

    def __call__(self, module, arguments):
        num_rows = len(arguments[0])
        self.calls.append(num_rows)
        if self.num_failures or num_rows > self.max_rows:
            self.num_failures = max(0, self.num_failures - 1)
            raise torch.OutOfMemoryError("injected")


@pytest.fixture(scope="module")
def runner():
    return LocalRunner(
        loading.load("sdxl-tiny", loading.shipped("sdxl-tiny"), Precision.FLOAT32, CPU)
    )


@pytest.fixture
def shortage(runner, request):
    """In the module that a test names, of those that run in the stages of an image."""
    components = runner.model.components
    module = {
        "text": components["text_encoder"],
        "denoise": components["unet"],
        "decode": components["vae"].decoder,
    }[request.param]
    made = Shortage()
    hook = module.register_forward_pre_hook(made)
    yield made
    hook.remove()


@pytest.fixture
def usual(runner):
    """What is generated while there is memory enough; and again when the shortage is over."""
    before = runner.generate(BATCH).pixels
    yield before
    assert runner.generate(BATCH).pixels == before


@pytest.mark.parametrize("shortage", ["denoise", "decode"], indirect=True)
def test_first_the_cache_is_freed_which_changes_nothing(usual, runner, shortage):
    shortage.num_failures = 1
    generated = runner.generate(BATCH)
    assert generated.pixels == usual
    assert generated.warnings == ()
    assert shortage.calls == [4, 4]


@pytest.mark.parametrize("shortage", ["denoise"], indirect=True)
def test_captured_graphs_go_with_the_cache(usual, runner, shortage):
    """They keep the memory that they work in."""
    layer = torch.nn.Conv2d(1, 1, 1)
    captured = GraphedRegion(lambda region, call: region(*call.tensors), Graphs())
    for _ in range(2):
        captured(layer, Call.of((torch.zeros(1, 1, 8, 8),), {}, CPU))
    assert captured.num_graphs == 1
    shortage.num_failures = 1
    runner.generate(BATCH)
    assert captured.num_graphs == 0


@pytest.mark.parametrize("shortage", ["decode"], indirect=True)
def test_then_images_are_decoded_in_slices_and_tiles(usual, runner, shortage):
    shortage.max_rows = 1
    generated = runner.generate(BATCH)
    (warning,) = generated.warnings
    assert "tiles" in warning
    assert shortage.calls == [4, 4, 1, 1, 1, 1]
    assert_near(generated.pixels, usual)


@pytest.mark.parametrize("shortage", ["denoise"], indirect=True)
def test_then_the_batch_is_halved_until_it_fits(usual, runner, shortage):
    shortage.max_rows = 1
    generated = runner.generate(BATCH)
    assert shortage.calls == [4, 4, 2, 1, 1, 2, 1, 1]
    (warning,) = generated.warnings
    assert "halved" in warning
    assert_near(generated.pixels, usual)


@pytest.mark.parametrize("shortage", ["decode"], indirect=True)
def test_batch_is_halved_when_slices_do_not_fit_either(usual, runner, shortage):
    """As for a slice whose result stays in memory while the next one is decoded."""
    shortage.num_failures = 3
    generated = runner.generate(BATCH)
    tiled, halved = generated.warnings
    assert "tiles" in tiled
    assert "halved" in halved
    assert shortage.calls == [4, 4, 1, 1, 1, 1, 1]
    assert_near(generated.pixels, usual)


@pytest.mark.parametrize(
    ("shortage", "subject"),
    [("denoise", "an image of 64x64"), ("decode", "decoding an image of 64x64")],
    indirect=["shortage"],
)
def test_at_last_it_is_answered_and_the_worker_goes(usual, runner, shortage, subject):
    shortage.max_rows = 0
    with pytest.raises(OutOfMemory, match=f"no memory for {subject} on cpu") as caught:
        runner.generate(BATCH)
    assert caught.value.refresh_worker
    assert shortage.calls[-1] == 1


@pytest.mark.parametrize("shortage", ["text"], indirect=True)
def test_text_that_does_not_fit_is_tried_again(usual, runner, shortage):
    shortage.num_failures = 2
    assert runner.generate(BATCH).pixels == usual
    shortage.num_failures = 3
    with pytest.raises(OutOfMemory, match="no memory for a text on cpu"):
        runner.generate(BATCH)


def assert_near(found, expected):
    """Another batch size may change an image by a level."""
    for one, other in zip(found, expected, strict=True):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 1
