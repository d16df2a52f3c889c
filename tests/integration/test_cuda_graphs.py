"""Graphs of a real UNet: which calls are captured, replayed and dropped."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import pytest
import torch
from support import loading
from support.factories import make_request
from support.graphs import Graphs
from torch.utils._pytree import tree_unflatten

from pixpod.engine.compilation import compile as compilation
from pixpod.engine.compilation.calls import NotCompiledFor
from pixpod.engine.compilation.cuda_graphs import MAX_FORMS, GraphedRegion, stop_capturing
from pixpod.engine.compilation.regions import Call
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.execution.stages import denoise
from pixpod.engine.memory.offloading import OffloadableWeights
from pixpod.families import FAMILIES, Precision
from pixpod.testing.engines import running_engine

CPU = torch.device("cpu")


class Broken(Graphs):
    """From the second on."""

    def capture(self, run):
        captured = super().capture(run)
        if self.num_captured > 1:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        return captured


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def unet():
    model = loading.load("sd15-tiny", loading.shipped("sd15-tiny"), Precision.FLOAT32, CPU)
    return model.components["unet"]


def call_of(seed=0, *, rows=2, side=8, text=77):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows, 4, side, side, generator=generator)
    texts = torch.randn(rows, text, 64, generator=generator)
    return Call.of((latents, torch.tensor(seed)), {"encoder_hidden_states": texts}, CPU)


def eagerly(region, call):
    args, kwargs = tree_unflatten(call.leaves, call.spec)
    return type(region).forward(region, *args, **kwargs)


def assert_computes(captured, unet, calls):
    """All of them, and none writes over what another gave."""
    for call, found in [(call, captured(unet, call)) for call in calls]:
        assert torch.equal(found.sample, eagerly(unet, call).sample)


def test_calls_of_one_form_are_computed_once_then_captured_then_replayed(unet):
    graphs = Graphs()
    captured = GraphedRegion(eagerly, graphs)
    assert_computes(captured, unet, [call_of(seed) for seed in range(4)])
    assert (graphs.num_captured, graphs.num_replayed) == (1, 3)


@pytest.mark.parametrize("other", [{"rows": 1}, {"side": 16}, {"text": 154}])
def test_each_form_has_its_own_graph(unet, other):
    captured = GraphedRegion(eagerly, Graphs())
    calls = [(call_of(seed), call_of(seed, **other)) for seed in range(3)]
    assert_computes(captured, unet, chain(*calls))
    assert captured.num_graphs == 2


def test_models_of_one_kind_have_their_own_graphs(unet):
    other = type(unet).from_config(unet.config).requires_grad_(False).eval()
    captured = GraphedRegion(eagerly, Graphs())
    for region in (unet, other, unet, other):
        assert_computes(captured, region, [call_of(1)])
    assert captured.num_graphs == 2


def test_form_that_was_called_longest_ago_goes_first(unet):
    graphs = Graphs()
    captured = GraphedRegion(eagerly, graphs)
    texts = range(10, 10 + MAX_FORMS)
    for text in (*texts, *texts, texts[0], 77, 77):
        captured(unet, call_of(text=text))
    assert captured.num_graphs == MAX_FORMS
    assert graphs.num_captured == MAX_FORMS + 1
    captured(unet, call_of(text=texts[0]))
    assert graphs.num_captured == MAX_FORMS + 1
    for _ in range(2):
        captured(unet, call_of(text=texts[1]))
    assert graphs.num_captured == MAX_FORMS + 2


def test_large_batches_are_not_captured():
    """Two rows of 1024 px are; their content does not matter here."""
    graphs = Graphs()
    layer = torch.nn.Conv2d(4, 4, 1)
    captured = GraphedRegion(eagerly, graphs)
    for rows in (2, 3):
        call = Call.of((torch.zeros(rows, 4, 128, 128),), {}, CPU)
        for _ in range(3):
            captured(layer, call)
    assert graphs.num_captured == captured.num_graphs == 1


def test_weights_that_have_moved_are_captured_anew(unet):
    graphs = Graphs()
    captured = GraphedRegion(eagerly, graphs)
    assert_computes(captured, unet, [call_of(seed) for seed in range(3)])
    weights = OffloadableWeights(unet, CPU)
    weights.offload()
    weights.onload()
    assert_computes(captured, unet, [call_of(seed) for seed in range(3)])
    assert graphs.num_captured == 2
    assert captured.num_graphs == 1


def test_device_that_does_not_capture_computes_all_the_same(unet, caplog):
    graphs = Broken()
    captured = GraphedRegion(eagerly, graphs)
    calls = [[call_of(seed, rows=rows) for seed in range(3)] for rows in (1, 2)]
    assert_computes(captured, unet, calls[0])
    assert captured.num_graphs == 1
    assert_computes(captured, unet, chain(*calls))
    assert graphs.num_captured == 2, "it is not tried again"
    assert captured.num_graphs == 0, "which keep memory"
    assert "no CUDA graphs are captured" in caplog.text


def test_nothing_is_captured_any_more_once_memory_was_short(unet):
    graphs = Graphs()
    captured = GraphedRegion(eagerly, graphs)
    assert_computes(captured, unet, [call_of(seed) for seed in range(3)])
    assert captured.num_graphs == 1
    stop_capturing()
    assert_computes(captured, unet, [call_of(seed) for seed in range(3)])
    assert captured.num_graphs == 0
    assert graphs.num_captured == 1


def test_call_that_is_not_compiled_is_never_captured(unet):
    def refuse(region, call):
        raise NotCompiledFor

    graphs = Graphs()
    captured = GraphedRegion(refuse, graphs)
    for _ in range(3):
        with pytest.raises(NotCompiledFor):
            captured(unet, call_of())
    assert graphs.num_captured == 0


def test_captured_graphs_generate_the_same_images(monkeypatch, tmp_path):
    """A whole pipeline as on a GPU, but with a compiler that changes nothing."""
    made = []

    def graphs_of(device):
        made.append(Graphs())
        return made[-1]

    def generate(seed):
        generator = torch.Generator().manual_seed(seed)
        options = {"width": 64, "height": 64, "num_inference_steps": 4, "output_type": "pt"}
        return model.full_pipeline()("a red circle", generator=generator, **options).images

    def regions_of(family, device):
        return [replace(each, is_channels_last=False) for each in family.regions]

    monkeypatch.setattr(compilation, "CudaGraphs", graphs_of)
    monkeypatch.setattr(compilation, "regions_for", regions_of)
    monkeypatch.setattr(compilation, "jit_compiled", lambda region, backend: eagerly)
    model = loading.load("sd15-tiny", loading.shipped("sd15-tiny"), Precision.FLOAT32, CPU)
    expected = [generate(seed) for seed in (1, 2)]
    found = compilation.compile_model(model, CompiledStore(tmp_path), backend="none")
    for seed, image in zip((1, 2), expected, strict=True):
        assert torch.allclose(generate(seed), image, atol=1 / 255)
    assert found.warnings == []
    (graphs,) = made
    assert (graphs.num_captured, graphs.num_replayed) == (1, 7)


def test_host_keeps_pace_before_it_reports_a_step(monkeypatch):
    """Of each step, replayed or not: what is under way cannot be called back."""
    order: list[str] = []

    class Pace:
        def __init__(self, device):
            assert device == CPU

        def step(self):
            order.append("waited")

    monkeypatch.setattr(denoise, "Pace", Pace)
    request = make_request(num_inference_steps=3)
    with running_engine({"PIXPOD_DEVICE": "cpu"}) as engine:
        asyncio.run(engine.generate(request, lambda step, steps: order.append(f"step {step}")))
    assert order == ["waited", "step 1", "waited", "step 2", "waited", "step 3"]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_only_unets_on_a_gpu_are_captured(family):
    def captured(device):
        regions = compilation.regions_for(family, torch.device(device))
        return [region.component for region in regions if region.has_cuda_graphs]

    assert captured("cpu") == []
    assert captured("cuda") == ([] if family.denoiser == "transformer" else ["unet"])
