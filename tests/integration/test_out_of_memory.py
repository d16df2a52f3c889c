"""A device whose memory is short: each rung of the ladder, on a pipeline that fails on order."""

import asyncio
from dataclasses import replace

import pytest
import torch
from support.factories import make_request
from support.graphs import Graphs

from pixpod.engine.compilation.cuda_graphs import Recorded
from pixpod.engine.compilation.regions import Call
from pixpod.engine.execution import model_runner as drawer
from pixpod.errors import OutOfMemory
from pixpod.testing.engines import running_engine

BATCH = make_request(seeds=(1, 2, 3, 4))


class Shortage:
    """Lets no batch through that has more rows than fit, until enough rungs were climbed."""

    def __init__(self, call):
        self._call = call
        self.num_failures = 0
        self.max_rows = 8
        self.attempts = []

    def __call__(self, batch, rows):
        vae = batch.model.components["vae"]
        self.attempts.append((len(rows), vae.use_slicing and vae.use_tiling))
        if self.num_failures or len(rows) > self.max_rows:
            self.num_failures = max(0, self.num_failures - 1)
            raise torch.OutOfMemoryError
        return self._call(batch, rows)


@pytest.fixture(scope="module")
def engine():
    with running_engine({"PIXPOD_DEVICE": "cpu"}) as running:
        yield running


@pytest.fixture
def shortage(monkeypatch):
    made = Shortage(drawer._call_pipeline)
    with monkeypatch.context() as patch:
        patch.setattr(drawer, "_call_pipeline", made)
        yield made


def generate(engine, request=BATCH):
    return asyncio.run(engine.generate(request))


@pytest.fixture
def usual(engine):
    """What is drawn while there is memory enough; and again when the shortage is over."""
    before = generate(engine).images
    yield before
    assert generate(engine).images == before


def test_first_the_cache_is_freed_which_changes_nothing(engine, usual, shortage):
    shortage.num_failures = 1
    generation = generate(engine)
    assert generation.images == usual
    assert generation.warnings == ()
    assert shortage.attempts == [(4, False), (4, False)]


def test_recordings_go_with_the_cache(engine, usual, shortage):
    """They keep the memory that they work in."""
    layer = torch.nn.Conv2d(1, 1, 1)
    recorded = Recorded(lambda region, call: region(*call.tensors), Graphs())
    for _ in range(2):
        recorded(layer, Call.of((torch.zeros(1, 1, 8, 8),), {}, torch.device("cpu")))
    assert recorded.num_recordings == 1
    shortage.num_failures = 1
    generate(engine)
    assert recorded.num_recordings == 0


def test_then_images_are_decoded_in_slices_and_tiles(engine, usual, shortage):
    shortage.num_failures = 2
    (warning,) = generate(engine).warnings
    assert "tiles" in warning
    assert shortage.attempts == [(4, False), (4, False), (4, True)]


def test_then_the_batch_is_halved_until_it_fits(engine, usual, shortage):
    shortage.max_rows = 1
    generation = generate(engine)
    assert [rows for rows, _ in shortage.attempts] == [4, 4, 4, 2, 1, 1, 2, 1, 1]
    assert "halved" in generation.warnings[-1]
    for image, as_ever in zip(generation.images, usual, strict=True):
        assert levels_apart(image, as_ever) <= 1


def test_at_last_it_is_answered_and_the_worker_goes(engine, usual, shortage):
    shortage.max_rows = 0
    with pytest.raises(OutOfMemory, match="64x64") as caught:
        generate(engine)
    assert caught.value.refresh_worker
    assert shortage.attempts[-1] == (1, True)


def test_text_that_does_not_fit_is_tried_again(engine, usual, monkeypatch):
    pipe = engine._loader.load(BATCH.model).result().pipe
    encode, failures = pipe.encode_prompt, [torch.OutOfMemoryError()] * 2

    def fail_first(**arguments):
        if failures:
            raise failures.pop()
        return encode(**arguments)

    monkeypatch.setattr(pipe, "encode_prompt", fail_first)
    assert generate(engine, replace(BATCH, prompt="a text of its own")).images
    failures += [torch.OutOfMemoryError()] * 3
    with pytest.raises(OutOfMemory, match="text"):
        generate(engine, replace(BATCH, prompt="and another one"))


def levels_apart(left, right):
    return max(abs(a - b) for a, b in zip(left.pixels, right.pixels, strict=True))
