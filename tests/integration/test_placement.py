"""Components are offloaded and onloaded: real modules, with the CPU as the device."""

import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.loading import load, shipped
from support.tiny_models import Desk, build_tiny_worker
from torch import nn

from pixpod.catalog import load_catalog
from pixpod.engine.component_key import ComponentKey, own_keys
from pixpod.engine.memory.budget import Budget
from pixpod.engine.memory.offloading import OffloadableWeights
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.model import LoadedModel
from pixpod.errors import OutOfMemory
from pixpod.families import Precision
from pixpod.job import ModelIdentity
from pixpod.methods import StageName, StagePlan

CPU = torch.device("cpu")
UNET_BYTES = 100 * 4


class Views(nn.Module):
    """Parameters as loading makes them: views of one file, of which two are the same weight."""

    def __init__(self, data: torch.Tensor) -> None:
        super().__init__()
        self.first = nn.Parameter(data[:4].view(2, 2), requires_grad=False)
        self.second = nn.Parameter(data[4:8], requires_grad=False)
        self.tied = self.second
        self.register_buffer("positions", torch.arange(3))


def values(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(module, expected):
    found = module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_views_of_one_file_leave_together_and_come_back():
    data = torch.arange(16.0)
    module = Views(data)
    before, first = values(module), module.first
    weights = OffloadableWeights(module, CPU)
    whole_bytes = 16 * 4 + 3 * 8
    assert (weights.size_bytes, weights.host_bytes) == (whole_bytes, 0)
    weights.offload()
    assert data.untyped_storage().nbytes() == 0
    assert (weights.size_bytes, weights.host_bytes) == (whole_bytes, whole_bytes)
    weights.onload()
    assert_same(module, before)
    assert module.first is first
    assert module.tied.data_ptr() == module.second.data_ptr()
    assert torch.equal(data, torch.arange(16.0))


def test_copy_in_host_memory_is_made_once(monkeypatch):
    module = nn.Linear(8, 8).requires_grad_(False)
    weights = OffloadableWeights(module, CPU)
    weights.copy_to_host()
    made: list[Any] = []

    def copy_out(*given):
        made.append(given)
        return ()

    monkeypatch.setattr("pixpod.engine.memory.offloading._copy_out", copy_out)
    for _ in range(2):
        weights.offload()
        weights.onload()
    assert not made


def test_replaced_weights_are_copied_anew():
    module = nn.Linear(8, 8).requires_grad_(False)
    weights = OffloadableWeights(module, CPU)
    weights.copy_to_host()
    module.weight.data = torch.full((8, 8), 7.0)
    weights.offload()
    weights.onload()
    assert torch.equal(module.weight, torch.full((8, 8), 7.0))
    assert weights.host_bytes == weights.size_bytes


@pytest.mark.parametrize("length", [99, 100, 101, 250])
def test_long_weights_go_in_pieces(monkeypatch, length):
    monkeypatch.setattr("pixpod.engine.memory.offloading.PIECE_BYTES", 100)
    module = nn.Module()
    data = torch.arange(length, dtype=torch.uint8)
    module.register_buffer("weight", data.clone())
    weights = OffloadableWeights(module, CPU)
    weights.offload()
    weights.onload()
    assert torch.equal(module.get_buffer("weight"), data)


@pytest.fixture(scope="module")
def flux():
    return load("flux-tiny", shipped("flux-tiny"), Precision.FLOAT8_DYNAMIC, CPU)


def generate(model):
    with torch.inference_mode():
        return model.full_pipeline()(
            prompt="a red circle on a blue background",
            width=64,
            height=64,
            num_inference_steps=2,
            max_sequence_length=48,
            generator=torch.Generator("cpu").manual_seed(1),
            output_type="pt",
        ).images


def test_float8_model_generates_the_same_image_after_it_was_offloaded(flux):
    before = generate(flux)
    for component, module in flux.components.items():
        weights = OffloadableWeights(module, CPU)
        size_bytes = weights.size_bytes
        weights.offload()
        on_device = {tensor.untyped_storage().nbytes() for tensor in inner_tensors(module)}
        assert on_device == {0}, component
        assert weights.size_bytes == size_bytes
        weights.onload()
    assert torch.equal(generate(flux), before)


def inner_tensors(module):
    """By another way than the code under test: what torchao's tensors are made of."""
    for tensor in (*module.parameters(), *module.buffers()):
        if hasattr(tensor, "qdata"):
            yield from (tensor.qdata, tensor.scale)
        else:
            yield tensor


# --- within a budget -----------------------------------------------------------------------------


def model_of(name, **sizes):
    """A loaded model of small layers; `sizes` are floats of each component."""
    spec = load_catalog()[name]
    modules = {}
    for component in spec.family.component_names:
        module = nn.Module()
        module.register_buffer("weight", torch.rand(sizes.get(component, 100)))
        modules[component] = module
    identity = ModelIdentity(name=name, revision="1", precision="float16", weights="baked")
    return LoadedModel(
        spec=spec,
        identity=identity,
        device=CPU,
        components=modules,
        keys=own_keys(spec, Precision.FLOAT16),
        tokenizers={},
        scheduler_config={},
        pipeline_options={},
    )


def placement_of(gpu_bytes):
    return Placement(make_plan([], Budget(gpu_bytes=gpu_bytes, overhead_bytes=0)))


def stage(*components, image_bytes=0):
    """A stage that works with these bytes for each image, and nothing else."""
    return StagePlan(
        name=StageName.DENOISE, components=components, fixed_bytes=0, image_bytes=image_bytes
    )


ENCODING, DENOISING = stage("text_encoder"), stage("unet", "vae")


def is_there(model, component):
    return model.components[component].weight.untyped_storage().nbytes() > 0


@pytest.fixture
def sdxl():
    return model_of("sdxl-tiny")


@pytest.fixture
def sd15():
    return model_of("sd15-tiny")


def test_nothing_moves_where_all_fits(sdxl, sd15):
    placement = placement_of(10 * UNET_BYTES)
    assert placement.onload(sdxl, DENOISING) == 0.0
    assert placement.onload(sd15, DENOISING) == 0.0
    assert placement.host_bytes == 0
    assert {key.component for key in placement.on_device} == {"unet", "vae"}


def test_requested_model_is_onloaded_and_another_one_is_offloaded(sdxl, sd15, caplog):
    caplog.set_level("INFO", logger="pixpod")
    placement = placement_of(4 * UNET_BYTES)
    weight = sdxl.components["unet"].weight.clone()
    placement.add(sdxl)
    assert placement.onload(sd15, DENOISING) > 0
    assert [is_there(sdxl, each) for each in sdxl.spec.family.component_names] == [
        False,
        False,
        True,
        True,
    ]
    assert placement.onload(sd15, ENCODING) > 0
    assert not is_there(sdxl, "unet")
    assert placement.onload(sdxl, DENOISING) > 0
    assert torch.equal(sdxl.components["unet"].weight, weight)
    assert not is_there(sd15, "unet")
    onloaded = [name for record in caplog.records for name in record.onloaded]
    assert onloaded == ["sdxl-tiny/unet in float16"]


def test_component_that_was_used_longest_ago_is_offloaded(sdxl, sd15):
    placement = placement_of(3 * UNET_BYTES)
    placement.onload(sdxl, ENCODING)
    placement.onload(sdxl, stage("unet"))
    placement.onload(sdxl, ENCODING)
    placement.onload(sd15, DENOISING)
    assert is_there(sdxl, "text_encoder")
    assert not is_there(sdxl, "unet")


def test_large_batch_makes_room_for_its_activations(sdxl, sd15):
    placement = placement_of(8 * UNET_BYTES)
    placement.add(sdxl)
    placement.add(sd15)
    placement.onload(sdxl, stage("unet", "vae", image_bytes=40), 1)
    assert is_there(sd15, "unet")
    placement.onload(sdxl, stage("unet", "vae", image_bytes=640), 3)
    assert not is_there(sd15, "unet")
    assert is_there(sdxl, "unet")


def test_short_memory_offloads_all_but_the_current_stage(sdxl, sd15):
    placement = placement_of(10 * UNET_BYTES)
    placement.add(sd15)
    placement.onload(sdxl, DENOISING)
    assert placement.offload_others(sdxl)
    assert not any(is_there(sd15, each) for each in sd15.spec.family.component_names)
    assert is_there(sdxl, "unet")
    assert is_there(sdxl, "vae")
    assert not placement.offload_others(sdxl)


def test_component_that_cannot_be_onloaded_is_out_of_memory(sdxl, monkeypatch):
    placement = placement_of(10 * UNET_BYTES)
    placement.onload(sdxl, stage("vae"))
    placement.add(sdxl)
    placement.release()
    placement.offload_others(sdxl)

    def fail(weights):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(OffloadableWeights, "onload", fail)
    with pytest.raises(OutOfMemory, match="sdxl-tiny/unet in float16 does not fit"):
        placement.onload(sdxl, stage("unet"))


def test_loading_makes_room_first(sdxl):
    placement = placement_of(5 * UNET_BYTES)
    placement.add(sdxl)
    seen: list[bool] = []

    def load_component() -> nn.Module:
        seen.extend(is_there(sdxl, each) for each in ("text_encoder", "text_encoder_2", "unet"))
        return nn.Linear(10, 10)

    key = ComponentKey(model="new", component="unet")
    placement.admit(key, 3 * UNET_BYTES, CPU, load_component)
    assert seen == [False, False, True]


def test_failed_load_takes_no_room(sdxl):
    placement = placement_of(4 * UNET_BYTES)

    def fail() -> nn.Module:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        placement.admit(ComponentKey(model="new", component="unet"), 4 * UNET_BYTES, CPU, fail)
    placement.add(sdxl)
    assert placement.onload(sdxl, DENOISING) == 0.0


def test_loading_waits_for_a_running_batch(sdxl):
    placement = placement_of(2 * UNET_BYTES)
    placement.onload(sdxl, DENOISING)
    loaded = threading.Event()

    def load_component() -> nn.Module:
        loaded.set()
        return nn.Linear(10, 10)

    key = ComponentKey(model="new", component="unet")
    arguments = (key, UNET_BYTES, CPU, load_component)
    loader = threading.Thread(target=placement.admit, args=arguments, daemon=True)
    loader.start()
    assert not loaded.wait(0.05)
    assert is_there(sdxl, "unet")
    placement.release()
    loader.join(timeout=30)
    assert loaded.is_set()
    assert not is_there(sdxl, "unet")


def test_components_pinned_for_compiling_stay(sdxl, sd15):
    placement = placement_of(4 * UNET_BYTES)
    with placement.pinning(sdxl, ("unet", "vae")):
        placement.onload(sd15, DENOISING)
        placement.offload_others(sd15)
        assert is_there(sdxl, "unet")
        assert is_there(sdxl, "vae")
    placement.offload_others(sd15)
    assert not is_there(sdxl, "unet")


def test_weights_replaced_while_pinned_are_those_that_are_onloaded(sdxl):
    placement = placement_of(10 * UNET_BYTES)
    placement.onload(sdxl, stage("unet"))
    placement.release()
    placement.offload_others(sdxl)
    assert placement.host_bytes == UNET_BYTES
    with placement.pinning(sdxl, ("unet",)):
        sdxl.components["unet"].weight = torch.full((100,), 3.0)
    assert placement.host_bytes == 0, "old weights must not be held on the device either"
    placement.offload_others(sdxl)
    assert not is_there(sdxl, "unet")
    placement.onload(sdxl, stage("unet"))
    assert torch.equal(sdxl.components["unet"].weight, torch.full((100,), 3.0))


@settings(max_examples=40, deadline=None)
@given(
    gpu_bytes=st.integers(8, 30),
    sizes=st.lists(st.integers(1, 4), min_size=7, max_size=7),
    work=st.lists(
        st.tuples(st.sampled_from(["sdxl", "sd15"]), st.sampled_from(["text", "image", "offload"])),
        max_size=15,
    ),
)
def test_weights_survive_any_order_of_work_and_stay_within_the_budget(gpu_bytes, sizes, work):
    names = load_catalog()["sdxl-tiny"].family.component_names
    floats = [size * 100 for size in sizes]
    models = {
        "sdxl": model_of("sdxl-tiny", **dict(zip(names, floats[:4], strict=True))),
        "sd15": model_of("sd15-tiny", text_encoder=floats[4], unet=floats[5], vae=floats[6]),
    }
    modules = [module for model in models.values() for module in model.components.values()]
    before = {id(module): module.weight.clone() for module in modules}
    placement = placement_of(gpu_bytes * UNET_BYTES)
    for model in models.values():
        placement.add(model)
    for name, kind in work:
        model = models[name]
        if kind == "offload":
            placement.release()
            placement.offload_others(model)
            continue
        components = model.spec.family.text_encoders if kind == "text" else ("unet", "vae")
        placement.onload(model, stage(*components))
        assert all(is_there(model, component) for component in components)
        on_device = sum(module.weight.untyped_storage().nbytes() for module in modules)
        assert on_device <= gpu_bytes * UNET_BYTES
    for model in models.values():
        for components in (model.spec.family.text_encoders, ("unet", "vae")):
            placement.onload(model, stage(*components))
            for module in (model.components[component] for component in components):
                assert torch.equal(module.weight, before[id(module)])


def test_threads_that_generate_and_compile_do_not_lock_each_other_out(sdxl, sd15):
    placement = placement_of(4 * UNET_BYTES)
    placement.add(sdxl)
    placement.add(sd15)

    def compile_often():
        for _ in range(100):
            with placement.pinning(sd15, ("unet", "vae")):
                assert is_there(sd15, "unet")

    compiling = threading.Thread(target=compile_often, daemon=True)
    compiling.start()
    for _ in range(100):
        placement.onload(sdxl, stage(*sdxl.spec.family.text_encoders))
        placement.onload(sdxl, DENOISING)
        assert is_there(sdxl, "unet")
        placement.release()
    compiling.join(timeout=60)
    assert not compiling.is_alive()


def test_shipped_model_generates_within_less_memory_than_it_takes(flux):
    """Its weights are views of mapped files, as ever on a CPU."""
    expected = generate(flux)
    model = load("flux-tiny", shipped("flux-tiny"), Precision.FLOAT8_DYNAMIC, CPU)
    pipe = model.full_pipeline()
    whole_bytes = sum(
        OffloadableWeights(module, CPU).size_bytes for module in model.components.values()
    )
    placement = placement_of(whole_bytes - 1)
    placement.add(model)
    with torch.inference_mode():
        placement.onload(model, stage(*model.spec.family.text_encoders))
        text, pooled, _ = pipe.encode_prompt(
            prompt="a red circle on a blue background", prompt_2=None, max_sequence_length=48
        )
        assert placement.onload(model, stage("transformer", "vae")) > 0
        placement.offload_others(model)
        images = pipe(
            prompt_embeds=text,
            pooled_prompt_embeds=pooled,
            width=64,
            height=64,
            num_inference_steps=2,
            generator=torch.Generator("cpu").manual_seed(1),
            output_type="pt",
        ).images
    assert torch.equal(images, expected)


def test_worker_generates_the_same_within_less_memory_than_its_models_take(tmp_path):
    """1 GiB is for CUDA and half a GiB for denoising; 19 MB are left for 21 MB of weights."""
    job: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 1}
    served = {"PIXPOD_MODELS": "sdxl-tiny,sd15-tiny", "PIXPOD_EXTRAS": "sdxl-canny-tiny"}

    def replies(**limit):
        worker = build_tiny_worker(tmp_path, **served, **limit)
        worker.start()
        try:
            desk = Desk(worker)
            return [desk.reply(model=model, **job) for model in ("sdxl-tiny", "sd15-tiny") * 2]
        finally:
            worker.stop()

    def hashes(found):
        return [reply["images"][0]["sha256"] for reply in found]

    def waited(found):
        return [reply["timings_ms"].get("onload", 0) > 0 for reply in found]

    free, tight = replies(), replies(PIXPOD_MEMORY_LIMIT_GB="1.52")
    assert hashes(tight) == hashes(free)
    assert waited(free) == [False] * 4
    assert waited(tight)[1:] == [True] * 3


def test_models_that_cannot_fit_are_refused_as_the_deployments_fault(tmp_path):
    worker = build_tiny_worker(
        tmp_path, PIXPOD_MODELS="sd15-tiny", PIXPOD_MEMORY_LIMIT_GB="1.2", PIXPOD_PRELOAD="true"
    )
    worker.start()
    try:
        reply = Desk(worker).reply(model="sd15-tiny", prompt="a red circle")
    finally:
        worker.stop()
    assert reply["error"].startswith("model_unavailable: sd15-tiny in float32 needs 1.5")
    assert "refresh_worker" not in reply
