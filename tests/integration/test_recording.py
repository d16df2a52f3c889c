"""What is recorded, replayed and dropped, of a real UNet."""

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
from pixpod.engine.compilation.cuda_graphs import MAX_FORMS, Recorded, stop_recording
from pixpod.engine.compilation.regions import Call
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.execution import model_runner as drawer
from pixpod.engine.memory.offloading import OffloadableWeights
from pixpod.families import FAMILIES, Precision
from pixpod.testing.engines import running_engine

CPU = torch.device("cpu")


class Broken(Graphs):
    """From the second on."""

    def record(self, run):
        recorded = super().record(run)
        if self.num_recorded > 1:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        return recorded


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
    latents = torch.randn(rows, 16, side, side, generator=generator)
    texts = torch.randn(rows, text, 64, generator=generator)
    return Call.of((latents, torch.tensor(seed)), {"encoder_hidden_states": texts}, CPU)


def eagerly(region, call):
    args, kwargs = tree_unflatten(call.leaves, call.spec)
    return type(region).forward(region, *args, **kwargs)


def assert_computes(recorded, unet, calls):
    """All of them, and none writes over what another gave."""
    for call, found in [(call, recorded(unet, call)) for call in calls]:
        assert torch.equal(found.sample, eagerly(unet, call).sample)


def test_calls_of_one_form_are_computed_once_then_recorded_then_replayed(unet):
    graphs = Graphs()
    recorded = Recorded(eagerly, graphs)
    assert_computes(recorded, unet, [call_of(seed) for seed in range(4)])
    assert (graphs.num_recorded, graphs.num_replayed) == (1, 3)


@pytest.mark.parametrize("other", [{"rows": 1}, {"side": 16}, {"text": 154}])
def test_each_form_has_its_own_recording(unet, other):
    recorded = Recorded(eagerly, Graphs())
    calls = [(call_of(seed), call_of(seed, **other)) for seed in range(3)]
    assert_computes(recorded, unet, chain(*calls))
    assert recorded.num_recordings == 2


def test_models_of_one_kind_have_their_own_recordings(unet):
    other = type(unet).from_config(unet.config).requires_grad_(False).eval()
    recorded = Recorded(eagerly, Graphs())
    for region in (unet, other, unet, other):
        assert_computes(recorded, region, [call_of(1)])
    assert recorded.num_recordings == 2


def test_form_that_was_called_longest_ago_goes_first(unet):
    graphs = Graphs()
    recorded = Recorded(eagerly, graphs)
    texts = range(10, 10 + MAX_FORMS)
    for text in (*texts, *texts, texts[0], 77, 77):
        recorded(unet, call_of(text=text))
    assert recorded.num_recordings == MAX_FORMS
    assert graphs.num_recorded == MAX_FORMS + 1
    recorded(unet, call_of(text=texts[0]))
    assert graphs.num_recorded == MAX_FORMS + 1
    for _ in range(2):
        recorded(unet, call_of(text=texts[1]))
    assert graphs.num_recorded == MAX_FORMS + 2


def test_large_batches_are_not_recorded():
    """Two rows of 1024 px are; what is drawn does not matter here."""
    graphs = Graphs()
    layer = torch.nn.Conv2d(4, 4, 1)
    recorded = Recorded(eagerly, graphs)
    for rows in (2, 3):
        call = Call.of((torch.zeros(rows, 4, 128, 128),), {}, CPU)
        for _ in range(3):
            recorded(layer, call)
    assert graphs.num_recorded == recorded.num_recordings == 1


def test_weights_that_have_moved_are_recorded_anew(unet):
    graphs = Graphs()
    recorded = Recorded(eagerly, graphs)
    assert_computes(recorded, unet, [call_of(seed) for seed in range(3)])
    weights = OffloadableWeights(unet, CPU)
    weights.park()
    weights.bring()
    assert_computes(recorded, unet, [call_of(seed) for seed in range(3)])
    assert graphs.num_recorded == 2
    assert recorded.num_recordings == 1


def test_device_that_does_not_record_computes_all_the_same(unet, caplog):
    graphs = Broken()
    recorded = Recorded(eagerly, graphs)
    calls = [[call_of(seed, rows=rows) for seed in range(3)] for rows in (1, 2)]
    assert_computes(recorded, unet, calls[0])
    assert recorded.num_recordings == 1
    assert_computes(recorded, unet, chain(*calls))
    assert graphs.num_recorded == 2, "it is not tried again"
    assert recorded.num_recordings == 0, "which keep memory"
    assert "launches are not recorded" in caplog.text


def test_nothing_is_recorded_any_more_once_memory_was_short(unet):
    graphs = Graphs()
    recorded = Recorded(eagerly, graphs)
    assert_computes(recorded, unet, [call_of(seed) for seed in range(3)])
    assert recorded.num_recordings == 1
    stop_recording()
    assert_computes(recorded, unet, [call_of(seed) for seed in range(3)])
    assert recorded.num_recordings == 0
    assert graphs.num_recorded == 1


def test_call_that_is_not_compiled_is_never_recorded(unet):
    def refuse(region, call):
        raise NotCompiledFor

    graphs = Graphs()
    recorded = Recorded(refuse, graphs)
    for _ in range(3):
        with pytest.raises(NotCompiledFor):
            recorded(unet, call_of())
    assert graphs.num_recorded == 0


def test_recordings_draw_what_is_drawn_without(monkeypatch, tmp_path):
    """A whole pipeline as on a card, but with a compiler that changes nothing."""
    made = []

    def graphs_of(device):
        made.append(Graphs())
        return made[-1]

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        options = {"width": 64, "height": 64, "num_inference_steps": 4, "output_type": "pt"}
        return model.pipe("a red circle", generator=generator, **options).images

    def all_of(family, device):
        return [replace(each, is_channels_last=False) for each in compilation.RECIPES[family]]

    monkeypatch.setattr(compilation, "CudaGraphs", graphs_of)
    monkeypatch.setattr(compilation, "recipes_for", all_of)
    monkeypatch.setattr(compilation, "_jit", lambda region, backend: eagerly)
    model = loading.load("sd15-tiny", loading.shipped("sd15-tiny"), Precision.FLOAT32, CPU)
    expected = [draw(seed) for seed in (1, 2)]
    found = compilation.compile_model(model, CompiledStore(tmp_path), backend="none")
    drawn = [draw(seed) for seed in (1, 2)]
    for one, other in zip(drawn, expected, strict=True):
        assert torch.allclose(one, other, atol=1 / 255)
    assert found.warnings == ()
    (graphs,) = made
    assert (graphs.num_recorded, graphs.num_replayed) == (1, 7)


def test_host_keeps_pace_before_it_tells_a_step(monkeypatch):
    """Of each step, recorded or not: what is under way cannot be called back."""
    order: list[str] = []

    class Pace:
        def __init__(self, device):
            assert device == CPU

        def step(self):
            order.append("waited")

    monkeypatch.setattr(drawer, "Pace", Pace)
    request = make_request(num_inference_steps=3)
    with running_engine({"PIXPOD_DEVICE": "cpu"}) as engine:
        asyncio.run(engine.generate(request, lambda step, steps: order.append(f"step {step}")))
    assert order == ["waited", "step 1", "waited", "step 2", "waited", "step 3"]


@pytest.mark.parametrize("family", Family)
def test_only_unets_on_a_card_are_recorded(family):
    def recorded(device):
        recipes = compilation.recipes_for(family, torch.device(device))
        return [recipe.component for recipe in recipes if recipe.has_cuda_graphs]

    assert recorded("cpu") == []
    assert recorded("cuda") == ([] if family is FAMILIES["flux"] else ["unet"])
