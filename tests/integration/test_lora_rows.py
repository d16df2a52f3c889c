"""LoRAs by the row: batches of several, weight-sharing copies, names of other tools, memory."""

import json

import numpy as np
import pytest
import torch
from support import loading
from support.factories import make_request
from support.lora_files import file_of
from support.loras import lora_file, with_loras
from torch._dynamo.utils import counters

from pixpod.engine.adapters.copies import AdaptedCopies
from pixpod.engine.adapters.reading import read_adapter
from pixpod.engine.adapters.side_path import SidePath
from pixpod.engine.adapters.store import AdapterStore
from pixpod.engine.adapters.weight_sharing import share_weights
from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.conditions import LoraCondition
from pixpod.engine.execution.model_runner import ModelRunner
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.scheduling.batching import BatchItem
from pixpod.errors import WorkerError
from pixpod.families import Precision
from pixpod.job import LoraSlots
from pixpod.methods import batch_key_of
from pixpod.testing.random_loras import random_lora

CPU = torch.device("cpu")
PRECISIONS = {
    "flux-tiny": Precision.FLOAT8_DYNAMIC,
    "sdxl-tiny": Precision.FLOAT32,
    "sd15-tiny": Precision.FLOAT32,
}


class Rows:
    """A runner of one model, for batches of rows."""

    def __init__(self, name, compile_copy=None):
        self.model = loading.load(name, loading.shipped(name), PRECISIONS[name], CPU)
        self.runner = ModelRunner(
            Placement(make_plan([], None)), ConditionCache(10**7), compile_copy=compile_copy
        )
        self.base = make_request(
            name, seeds=(1,), num_inference_steps=2, guidance_scale=3.0, width=64, height=64
        )

    def run(self, *stacks, request=None):
        """The pixels of one row for each stack of files; all of them are one batch."""
        requests = [
            self.runner.prepare(self.model, with_loras(request or self.base, *files)).request
            for files in stacks
        ]
        assert len({batch_key_of(each) for each in requests}) == 1
        items = [BatchItem(request=each, seeds=each.seeds) for each in requests]
        found = []
        for result in self.runner.execute(self.model, items, lambda num_done: None):
            if isinstance(result, WorkerError):
                raise result
            (image,) = result.images
            found.append(np.frombuffer(image.pixels.pixels, np.uint8))
        return found


@pytest.fixture(
    scope="module",
    params=["flux-tiny", "sdxl-tiny", pytest.param("sd15-tiny", marks=pytest.mark.acceptance)],
)
def rows(request):
    return Rows(request.param)


@pytest.fixture(scope="module")
def files(rows, tmp_path_factory):
    """Two LoRAs, of two ranks."""
    folder = tmp_path_factory.mktemp("files")
    return [random_lora(rows.model, folder, seed, rank=rank) for seed, rank in ((1, 4), (2, 6))]


def test_each_row_is_as_among_rows_of_its_kind_and_nothing_stays(rows, files):
    a, b = map(lora_file, files)
    weak = lora_file(files[0], 0.3)
    (plain,) = rows.run([])
    stacks = ([a], [b], [a, b], [weak])
    mixed = rows.run(*stacks)
    for place, stack in enumerate(stacks):
        assert np.array_equal(rows.run(*[stack] * 4)[place], mixed[place]), place
    assert len({image.tobytes() for image in mixed}) == 4
    assert np.array_equal(rows.run([])[0], plain)


def test_scale_zero_is_as_none_and_the_order_of_the_list_does_not_matter(rows, files):
    a, b = map(lora_file, files)
    nothing = lora_file(files[1], 0.0)
    (plain,) = rows.run([])
    assert np.array_equal(rows.run([nothing])[0], plain)
    assert np.array_equal(rows.run([a, nothing])[0], rows.run([a])[0])
    assert np.array_equal(rows.run([a, b])[0], rows.run([b, a])[0])


def test_lora_acts_as_if_it_were_merged(rows, files):
    """In float32, where the order of sums makes no more than a level of difference."""
    if rows.model.identity.precision != "float32":
        pytest.skip("weights in 8 bits cannot take it")
    (found,) = rows.run([lora_file(files[0], 0.7)])
    adapter = read_adapter(lora_file(files[0]), rows.model)
    denoiser = rows.model.spec.family.denoiser
    saved = {}
    with torch.no_grad():
        for name, pair in adapter.of(denoiser).items():
            weight = rows.model.denoiser.get_submodule(name).weight
            saved[name] = weight.clone()
            merged = torch.einsum("or,r...->o...", pair.up, pair.down)
            weight += 0.7 * merged.view_as(weight)
        (merged_image,) = rows.run([])
        for name, weight in saved.items():
            rows.model.denoiser.get_submodule(name).weight.copy_(weight)
    assert np.abs(found.astype(int) - merged_image).max() <= 1


def test_convolutions_and_text_encoders_have_side_paths_too(rows, tmp_path):
    path = random_lora(rows.model, tmp_path, 5, is_whole=True, text=True)
    usual = random_lora(rows.model, tmp_path, 5)
    whole = lora_file(path)
    (plain,), (found,) = rows.run([]), rows.run([whole])
    assert not np.array_equal(found, plain)
    assert not np.array_equal(rows.run([lora_file(usual)])[0], found)
    prepared = rows.runner.prepare(rows.model, with_loras(rows.base, whole))
    assert prepared.request.conditions.slots.is_whole
    assert np.array_equal(rows.run([whole])[0], found)
    assert np.array_equal(rows.run([])[0], plain)


def test_copy_shares_all_weights_and_has_no_compiled_code_of_the_original(rows):
    for component in rows.model.components.values():
        copy = share_weights(component)
        assert type(copy) is type(component)
        pairs = zip(component.named_parameters(), copy.named_parameters(), strict=True)
        assert all(one == other and p is q for (one, p), (other, q) in pairs)
        assert all("forward" not in module.__dict__ for module in copy.modules())
        assert not {*map(id, component.modules())} & {*map(id, copy.modules())}


def test_original_has_no_side_path(rows, files):
    rows.run([lora_file(files[0])])
    for component in rows.model.components.values():
        assert not any(isinstance(module, SidePath) for module in component.modules())


@pytest.mark.parametrize(
    "name", ["flux-tiny", pytest.param("sdxl-tiny", marks=pytest.mark.acceptance)]
)
def test_no_graph_is_compiled_for_other_loras_numbers_or_scales(tmp_path, name):
    store = CompiledStore(tmp_path / "none", untrusted=())

    def compile_copy(model):
        return compile_model(model, store, backend="eager", only=(model.spec.family.denoiser,))

    rows = Rows(name, compile_copy)
    first, *others = (
        random_lora(rows.model, tmp_path, seed, rank=rank) for seed, rank in enumerate((4, 3, 5))
    )
    torch._dynamo.reset()
    counters.clear()
    rows.run([lora_file(first)], [lora_file(first)])
    num_graphs = counters["stats"]["unique_graphs"]
    assert num_graphs > 0
    for stacks in (
        ([lora_file(others[0], 0.5)], [lora_file(others[1], -2.0)]),
        ([*map(lora_file, others)], [lora_file(first, 0.0)]),
        ([lora_file(first), *map(lora_file, others)], [lora_file(others[1])]),
    ):
        rows.run(*stacks)
    assert counters["stats"]["unique_graphs"] == num_graphs


def test_memory_of_idle_copies_is_freed_when_it_is_short(tmp_path):
    rows = Rows("sdxl-tiny")
    (lora,) = (each for each in rows.runner._conditions if isinstance(each, LoraCondition))
    copies = lora._copies
    small = random_lora(rows.model, tmp_path, 1, rank=4)
    large = random_lora(rows.model, tmp_path, 2, rank=40)
    rows.run([lora_file(small)])
    rows.run([lora_file(large)])
    assert len(copies._copies) == 2
    failures = [torch.OutOfMemoryError("injected")]

    def fail_once(module, arguments):
        if failures:
            raise failures.pop()

    (expected,) = rows.run([])
    hook = rows.model.denoiser.register_forward_pre_hook(fail_once)
    try:
        (found,) = rows.run([])
    finally:
        hook.remove()
    assert np.array_equal(found, expected)
    assert not copies._copies


def test_idle_copies_take_no_more_memory_than_is_spare(sdxl, tmp_path):
    copies = AdaptedCopies()
    for rank in (16, 64, 32):
        slots = LoraSlots(rank=rank, is_whole=False)
        copies.get(sdxl.model, "unet", slots, 2)
    total = copies.slot_bytes
    largest = total * 64 // (16 + 64 + 32)
    copies.release(None)
    assert copies.slot_bytes == total
    copies.release(total - 1)
    assert copies.slot_bytes == pytest.approx(largest + total * 32 // 112, rel=0.01)
    copies.release(0)
    assert copies.slot_bytes == 0


def test_more_rows_need_a_new_copy_and_fewer_do_not(sdxl):
    copies = AdaptedCopies()
    slots = LoraSlots(rank=16, is_whole=False)
    two = copies.get(sdxl.model, "unet", slots, 2)
    assert copies.get(sdxl.model, "unet", slots, 1) is two
    four = copies.get(sdxl.model, "unet", slots, 4)
    assert (four is two, four.max_rows) == (False, 4)
    assert copies.get(sdxl.model, "unet", slots, 2) is four


def test_error_in_a_step_leaves_nothing(rows, files):
    a, b = map(lora_file, files)
    (plain,), (expected,) = rows.run([]), rows.run([b])

    def fail(num_done):
        raise KeyError("injected")

    request = rows.runner.prepare(rows.model, with_loras(rows.base, a)).request
    with pytest.raises(KeyError):
        rows.runner.execute(rows.model, [BatchItem(request=request, seeds=(1,))], fail)
    assert np.array_equal(rows.run([])[0], plain)
    assert np.array_equal(rows.run([b])[0], expected)


# --- names of other tools ------------------------------------------------------------------------


def pairs_of(rows, tensors, folder, metadata=None):
    path = folder / "named.safetensors"
    path.write_bytes(file_of(tensors, metadata))
    return read_adapter(lora_file(path), rows.model).pairs


def product(pairs, component, layer):
    pair = pairs[component][layer]
    return pair.up.float() @ pair.down.float().flatten(1)


@pytest.fixture(scope="module")
def flux():
    return Rows("flux-tiny")


@pytest.fixture(scope="module")
def sdxl():
    return Rows("sdxl-tiny")


def test_kohyas_flux_has_alphas_and_fused_layers(flux, tmp_path):
    width = flux.model.denoiser.transformer_blocks[0].attn.to_q.in_features
    down, up = torch.randn(4, width), torch.randn(3 * width, 4)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(2.0),
    }
    pairs = pairs_of(flux, tensors, tmp_path)
    assert set(pairs["transformer"]) == {
        f"transformer_blocks.0.attn.to_{part}" for part in ("q", "k", "v")
    }
    expected = 0.5 * up @ down
    for at, part in enumerate(("q", "k", "v")):
        found = product(pairs, "transformer", f"transformer_blocks.0.attn.to_{part}")
        assert torch.allclose(found, expected[at * width : (at + 1) * width], atol=0.3, rtol=0.02)


def test_kohyas_final_layer_keeps_its_alpha(flux, tmp_path):
    layer = flux.model.denoiser.proj_out
    down, up = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
    name = "lora_unet_final_layer_linear"
    tensors = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(1.0),
    }
    pairs = pairs_of(flux, tensors, tmp_path)
    assert torch.allclose(product(pairs, "transformer", "proj_out"), 0.5 * up @ down, atol=0.1)


def test_xlabs_names(flux, tmp_path):
    width = flux.model.denoiser.transformer_blocks[0].attn.to_q.in_features
    down, up = torch.randn(4, width), torch.randn(width, 4)
    name = "double_blocks.1.processor.proj_lora1"
    tensors = {f"{name}.down.weight": down, f"{name}.up.weight": up}
    pairs = pairs_of(flux, tensors, tmp_path)
    found = product(pairs, "transformer", "transformer_blocks.1.attn.to_out.0")
    assert torch.allclose(found, up @ down, atol=0.3, rtol=0.02)


def test_old_names_of_diffusers(sdxl, tmp_path):
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = sdxl.model.denoiser.get_submodule(layer).in_features
    down, up = torch.randn(4, width), torch.randn(width, 4)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
    tensors = {f"{name}.down.weight": down, f"{name}.up.weight": up}
    pairs = pairs_of(sdxl, tensors, tmp_path)
    assert torch.equal(product(pairs, "unet", layer), up @ down)


def test_kohyas_sdxl_has_both_text_encoders(sdxl, tmp_path):
    width = sdxl.model.components["text_encoder"].config.hidden_size
    tensors = {}
    for encoder in ("te1", "te2"):
        for part in ("self_attn_q_proj", "mlp_fc1"):
            module = sdxl.model.components["text_encoder" if encoder == "te1" else "text_encoder_2"]
            outputs = width if part == "self_attn_q_proj" else module.config.intermediate_size
            name = f"lora_{encoder}_text_model_encoder_layers_0_{part}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(4, width)
            tensors[f"{name}.lora_up.weight"] = torch.randn(outputs, 4)
            tensors[f"{name}.alpha"] = torch.tensor(4.0)
    pairs = pairs_of(sdxl, tensors, tmp_path)
    assert {name: len(layers) for name, layers in pairs.items()} == {
        "text_encoder": 2,
        "text_encoder_2": 2,
    }


def test_scale_of_diffusers_metadata_counts(sdxl, tmp_path):
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = sdxl.model.denoiser.get_submodule(layer).in_features
    down, up = torch.randn(4, width), torch.randn(width, 4)
    tensors = {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
    facts = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {}}
    metadata = {"lora_adapter_metadata": json.dumps(facts)}
    pairs = pairs_of(sdxl, tensors, tmp_path, metadata)
    assert torch.allclose(product(pairs, "unet", layer), 2 * up @ down, rtol=1e-4, atol=1e-4)


def test_store_reads_a_file_once_and_drops_the_oldest(sdxl, tmp_path):
    paths = [random_lora(sdxl.model, tmp_path, seed) for seed in range(3)]
    size = read_adapter(lora_file(paths[0]), sdxl.model).nbytes
    store = AdapterStore(2 * size)
    first = store.get(lora_file(paths[0]), sdxl.model)
    assert store.get(lora_file(paths[0], 0.5), sdxl.model) is first
    for path in paths[1:]:
        store.get(lora_file(path), sdxl.model)
    assert store.get(lora_file(paths[0]), sdxl.model) is not first
