"""What only a card can show of compiled models: that they draw the same, and are compiled once."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from support.likeness import psnr_db

from pixpod.bootstrap import build_engine
from pixpod.engine.compilation.calls import Compilation
from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.cuda_graphs import Recorded
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.loading.model_loading import LoadedModel
from pixpod.engine.memory.offloading import OffloadableWeights
from pixpod.families import FAMILIES, Precision
from pixpod.job import GenerationRequest
from pixpod.settings import Settings
from pixpod.testing.runners import count_graphs

pytestmark = pytest.mark.gpu

KINDS = [
    ("flux-tiny", Precision.BFLOAT16),
    ("flux-tiny", Precision.FLOAT8_DYNAMIC),
    ("sdxl-tiny", Precision.BFLOAT16),
    ("sd15-tiny", Precision.BFLOAT16),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A shipped model that is compiled in this process, and what it drew before."""

    model: LoadedModel
    compilation: Compilation
    request: GenerationRequest
    eager: list[bytes]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def compiled(request, load_tiny, draw, ask, float8_device, cuda, tmp_path_factory) -> Compiled:
    """Compiled once for all that is tested of it."""
    torch.compiler.reset()
    name, precision = request.param
    model = load_tiny(name, precision, cuda)
    asked = ask(name, seeds=(5, 6), steps=8)
    eager = draw(model, asked)
    store = CompiledStore(tmp_path_factory.mktemp("compiled"))
    compilation = compile_model(model, store)
    return Compiled(model=model, compilation=compilation, request=asked, eager=eager)


def test_compiled_model_draws_the_same_picture(compiled, draw):
    found = draw(compiled.model, compiled.request)
    assert compiled.compilation.warnings == ()
    assert set(compiled.compilation.ways.values()) == {"jit"}
    for one, other in zip(compiled.eager, found, strict=True):
        assert psnr_db(one, other) >= 40


def recordings_of(model: LoadedModel) -> list[int]:
    """Of each region that is recorded; 0 where the card refused."""
    denoiser = getattr(model.pipe, model.spec.family.denoiser)
    ways = [getattr(region.forward, "_compiled", None) for region in denoiser.modules()]
    return [way.num_recordings for way in ways if isinstance(way, Recorded)]


def test_launches_of_unets_are_recorded(compiled, draw, ask):
    draw(compiled.model, ask(compiled.model.spec.name))
    recordings = recordings_of(compiled.model)
    assert len(recordings) == (compiled.model.spec.family is not FAMILIES["flux"])
    assert all(recordings)


def test_neither_sizes_nor_batches_compile_again(compiled, draw, ask):
    """After one image and two of one size."""
    name = compiled.model.spec.name
    for seeds in ((1,), (1, 2)):
        draw(compiled.model, ask(name, seeds=seeds))
    graphs = count_graphs()
    for size_px, rows in ((64, 4), (96, 1), (96, 2), (128, 1), (128, 8)):
        draw(compiled.model, ask(name, size_px=size_px, seeds=range(rows)))
    assert graphs > 0
    assert count_graphs() == graphs


def test_compiled_model_draws_the_same_after_it_was_parked(compiled, draw):
    """Its weights lie elsewhere then, which recorded graphs must notice."""
    model = compiled.model
    before = draw(model, compiled.request)
    assert draw(model, compiled.request) == before
    for component in model.spec.family.component_names:
        weights = OffloadableWeights(getattr(model.pipe, component), model.device)
        weights.park()
        other = torch.full((2**20,), 7.0, device=model.device)  # takes the place that is free now
        weights.bring()
        del other
    assert draw(model, compiled.request) == before


def test_models_may_be_moved_while_another_is_recorded(compiled, draw, ask, load_random):
    """By other threads, as when one is loaded while the first jobs of another are drawn."""
    name, device = compiled.model.spec.name, compiled.model.device
    other = load_random("sd15-tiny", Precision.BFLOAT16, device)
    weights = OffloadableWeights(other.components["unet"], device)
    is_over = threading.Event()

    def move() -> int:
        num_moves = 0
        while not is_over.is_set():
            weights.park()
            weights.bring()
            num_moves += 1
        return num_moves

    with ThreadPoolExecutor(1) as thread:
        moving = thread.submit(move)
        try:
            for size_px in (160, 192, 224):
                drawn = [draw(compiled.model, ask(name, size_px=size_px)) for _ in range(3)]
                assert drawn[0] == drawn[1] == drawn[2]
        finally:
            is_over.set()
        assert moving.result() > 0
    assert compiled.compilation.warnings == ()
    assert all(recordings_of(compiled.model))


def test_pictures_are_not_written_over_by_later_ones(compiled, draw, ask):
    """As results of recorded graphs are, unless they are copied."""
    name = compiled.model.spec.name
    first = draw(compiled.model, ask(name, seeds=(5,)))
    kept = [bytes(picture) for picture in first]
    draw(compiled.model, ask(name, seeds=(6,)))
    draw(compiled.model, ask(name, size_px=96, seeds=(7, 8)))
    assert first == kept
    assert draw(compiled.model, ask(name, seeds=(5,))) == kept


def test_engine_draws_compiled_models_on_its_own_thread(ask, cuda, tmp_path):
    """Recorded graphs belong to the thread that recorded them."""
    environ = {
        "PIXPOD_DEVICE": "cuda",
        "PIXPOD_MODELS": "sdxl-tiny,flux-tiny",
        "PIXPOD_COMPILE": "true",
        "PIXPOD_COMPILED_DIR": str(tmp_path),
        "PIXPOD_WARMUP_SIZES": "64x64",
        "PIXPOD_PRELOAD": "true",
    }
    engine = build_engine(Settings.from_env(environ))
    engine.start()
    try:
        for name in ("sdxl-tiny", "flux-tiny", "sdxl-tiny"):
            first, again = (asyncio.run(engine.generate(ask(name))) for _ in range(2))
            assert not any("eagerly" in warning for warning in first.warnings)
            assert first.images == again.images
    finally:
        engine.stop()
