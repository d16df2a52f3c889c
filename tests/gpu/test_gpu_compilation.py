"""What only a GPU can show of compiled models: the same images, and compiled once."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from support.likeness import psnr_db

from pixpod.bootstrap import build_engine
from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.cuda_graphs import GraphedRegion
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.memory.offloading import OffloadableWeights
from pixpod.engine.model import Compilation, LoadedModel
from pixpod.families import FLUX, Precision
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
    """A shipped model that is compiled in this process, and its images before that."""

    model: LoadedModel
    compilation: Compilation
    request: GenerationRequest
    eager: list[bytes]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def compiled(
    request, load_tiny, generate, make_request, float8_device, cuda, tmp_path_factory
) -> Compiled:
    """Compiled once for all that is tested of it."""
    torch.compiler.reset()
    name, precision = request.param
    model = load_tiny(name, precision, cuda)
    request_of_two = make_request(name, seeds=(5, 6), steps=8)
    eager = generate(model, request_of_two)
    store = CompiledStore(tmp_path_factory.mktemp("compiled"))
    compilation = compile_model(model, store)
    return Compiled(model=model, compilation=compilation, request=request_of_two, eager=eager)


def test_compiled_model_generates_the_same_image(compiled, generate):
    found = generate(compiled.model, compiled.request)
    assert compiled.compilation.warnings == ()
    assert set(compiled.compilation.modes.values()) == {"jit"}
    for one, other in zip(compiled.eager, found, strict=True):
        assert psnr_db(one, other) >= 40


def graphs_of(model: LoadedModel) -> list[int]:
    """Captured graphs of each region that may have some; 0 where the GPU refused."""
    forwards = [getattr(region.forward, "_compiled", None) for region in model.denoiser.modules()]
    return [forward.num_graphs for forward in forwards if isinstance(forward, GraphedRegion)]


def test_launches_of_unets_are_captured(compiled, generate, make_request):
    generate(compiled.model, make_request(compiled.model.spec.name))
    graphs = graphs_of(compiled.model)
    assert len(graphs) == (compiled.model.spec.family is not FLUX)
    assert all(graphs)


def test_neither_sizes_nor_batches_compile_again(compiled, generate, make_request):
    """After one image and two of one size."""
    name = compiled.model.spec.name
    for seeds in ((1,), (1, 2)):
        generate(compiled.model, make_request(name, seeds=seeds))
    graphs = count_graphs()
    for size_px, rows in ((64, 4), (96, 1), (96, 2), (128, 1), (128, 8)):
        generate(compiled.model, make_request(name, size_px=size_px, seeds=range(rows)))
    assert graphs > 0
    assert count_graphs() == graphs


def test_compiled_model_generates_the_same_after_it_was_offloaded(compiled, generate):
    """Its weights lie elsewhere then, which captured graphs must notice."""
    model = compiled.model
    before = generate(model, compiled.request)
    assert generate(model, compiled.request) == before
    for module in model.components.values():
        weights = OffloadableWeights(module, model.device)
        weights.offload()
        other = torch.full((2**20,), 7.0, device=model.device)  # takes the place that is free now
        weights.onload()
        del other
    assert generate(model, compiled.request) == before


def test_models_may_be_moved_while_another_is_captured(
    compiled, generate, make_request, load_random
):
    """By other threads, as when one is loaded while the first jobs of another run."""
    name, device = compiled.model.spec.name, compiled.model.device
    other = load_random("sd15-tiny", Precision.BFLOAT16, device)
    weights = OffloadableWeights(other.components["unet"], device)
    is_over = threading.Event()

    def move() -> int:
        num_moves = 0
        while not is_over.is_set():
            weights.offload()
            weights.onload()
            num_moves += 1
        return num_moves

    with ThreadPoolExecutor(1) as thread:
        moving = thread.submit(move)
        try:
            for size_px in (160, 192, 224):
                generated = [
                    generate(compiled.model, make_request(name, size_px=size_px)) for _ in range(3)
                ]
                assert generated[0] == generated[1] == generated[2]
        finally:
            is_over.set()
        assert moving.result() > 0
    assert compiled.compilation.warnings == ()
    assert all(graphs_of(compiled.model))


def test_images_are_not_written_over_by_later_ones(compiled, generate, make_request):
    """As results of captured graphs are, unless they are copied."""
    name = compiled.model.spec.name
    first = generate(compiled.model, make_request(name, seeds=(5,)))
    kept = [bytes(image) for image in first]
    generate(compiled.model, make_request(name, seeds=(6,)))
    generate(compiled.model, make_request(name, size_px=96, seeds=(7, 8)))
    assert first == kept
    assert generate(compiled.model, make_request(name, seeds=(5,))) == kept


def test_engine_runs_compiled_models_on_its_own_thread(make_request, cuda, tmp_path):
    """Captured graphs belong to the thread that captured them."""
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
            first, again = (asyncio.run(engine.generate(make_request(name))) for _ in range(2))
            assert not any("eagerly" in warning for warning in first.warnings)
            assert first.images == again.images
    finally:
        engine.stop()
