"""Compiled models over all that they serve: no graph but those of the warm-up, the same images.

Graphs are counted with a backend that compiles nothing: what torch traces, and traces again, is
what is held here. Inductor's own code is built once, for a small region.
"""

import itertools
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import loading
from support.factories import make_request
from torch import nn
from torch._dynamo.utils import counters

from pixpod.engine.compilation.calls import (
    NotCompiledFor,
    PackageCompiled,
    RegionForward,
    example_call,
)
from pixpod.engine.compilation.compile import (
    compile_key_of,
    compile_model,
    find_regions,
    open_package,
    use_channels_last,
    verify,
)
from pixpod.engine.compilation.regions import Call, kind_of, read_weights, weight_slots
from pixpod.engine.compilation.store import CallForm, CompiledStore, UnusablePackage
from pixpod.engine.model import Compilation
from pixpod.engine.precision.quantization import convert
from pixpod.engine.scheduling.device_watch import DeviceWatch
from pixpod.families import Precision
from pixpod.methods import batch_key_of
from pixpod.testing.runners import LocalRunner
from pixpod_tools.compile.building import check_packages, list_tasks, tasks_left
from pixpod_tools.compile.cli import main
from pixpod_tools.compile.exporting import (
    CannotPackage,
    build_package,
    form_of,
    samples,
    watch_calls,
)

CPU = torch.device("cpu")
NOWHERE = CompiledStore(Path("/nonexistent"))
LEVELS = {Precision.FLOAT32: 1, Precision.BFLOAT16: 4, Precision.FLOAT8_DYNAMIC: 4}
"""How much compiled images may differ of 255."""

pytestmark = [
    # of torch about itself, and of diffusers' version checks while they are traced
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()


def load(name, precision):
    return loading.load(name, loading.shipped(name), precision, CPU)


def generate(model, size=(64, 64), *, rows=1, text=None):
    """Images as 8-bit levels; a row is the same in any company."""
    arguments = {"max_sequence_length": text} if text else {}
    with torch.inference_mode():
        images = model.full_pipeline()(
            ["a red circle"] * rows,
            width=size[0],
            height=size[1],
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=[torch.Generator().manual_seed(row) for row in range(rows)],
            output_type="pt",
            **arguments,
        ).images
    return (images.float() * 255).round().numpy()


def assert_same(found, expected, precision):
    assert np.abs(found - expected).max() <= LEVELS[precision]
    noise = np.square(found - expected).mean()
    assert noise == 0 or 10 * np.log10(255**2 / noise) >= 40


@pytest.fixture
def graphs():
    """What was compiled, by a backend that runs it as it is."""
    found = []

    @torch._dynamo.register_backend(name="counting")
    def counting(graph, inputs):
        found.append(graph)
        return graph.forward

    return found


FLUX_CALLS = (
    {"size": (32, 128), "rows": 1, "text": 48},
    {"size": (96, 48), "rows": 2, "text": 512},
    {"size": (64, 128), "rows": 4, "text": 16},
    {"size": (64, 64), "rows": 8, "text": 48},
)
UNET_CALLS = (
    {"size": (32, 128), "rows": 1},
    {"size": (96, 48), "rows": 2},
    {"size": (64, 128), "rows": 4},
)
"""On a CPU torch's convolutions go another way by the area of a single image, and from 16 rows on;
so a single one is of the warm-up's area, and UNets have no more than 8 with guidance.
"""


def test_sizes_and_batches_need_no_graph_but_those_of_the_warm_up(graphs):
    """Two graphs for each kind of region: for one row, and for more, which guidance makes of one.

    All models in one process, because a worker has them so. They have the same decoder, which runs
    in float32 on a CPU, and is compiled with the first.
    """
    counted = {}
    for name, precision, calls in (
        ("flux-tiny", Precision.FLOAT8_DYNAMIC, FLUX_CALLS),
        ("flux-tiny", Precision.BFLOAT16, FLUX_CALLS),
        ("sdxl-tiny", Precision.FLOAT32, UNET_CALLS),
        ("sd15-tiny", Precision.FLOAT32, UNET_CALLS),
    ):
        model, before = load(name, precision), len(graphs)
        eager = [generate(model, **call) for call in calls]
        compilation = compile_model(model, NOWHERE, backend="counting")
        assert set(compilation.modes.values()) == {"jit"}
        for rows in (1, 2):
            generate(model, rows=rows)
        counted[name, precision] = len(graphs) - before
        with torch._dynamo.config.patch(error_on_recompile=True):
            for call, expected in zip(calls, eager, strict=True):
                assert_same(generate(model, **call), expected, precision)
        assert compilation.warnings == []
        assert len(graphs) - before == counted[name, precision]
    assert counted == {
        ("flux-tiny", Precision.FLOAT8_DYNAMIC): 6,
        ("flux-tiny", Precision.BFLOAT16): 4,
        ("sdxl-tiny", Precision.FLOAT32): 3,  # sd15-tiny has the same decoder
        ("sd15-tiny", Precision.FLOAT32): 1,
    }
    assert not counters["graph_break"]


def test_what_cannot_be_compiled_runs_eagerly_and_says_so():
    @torch._dynamo.register_backend(name="broken")
    def broken(graph, inputs):
        raise ValueError("no compiler")

    model = load("flux-tiny", Precision.BFLOAT16)
    eager = generate(model)
    compilation = compile_model(model, NOWHERE, backend="broken")
    assert np.array_equal(generate(model), eager)
    assert compilation.modes == {"transformer": "eager", "vae": "eager"}
    assert len(compilation.warnings) == 2
    assert "runs eagerly, which is slower: BackendCompilerFailed" in compilation.warnings[0]


def test_device_that_compiles_is_not_taken_for_one_that_hangs():
    request, limit_s = make_request(), 0.05
    stuck, was_reported = threading.Event(), []
    watch = DeviceWatch(lambda waited_s: stuck.set(), limit_s=limit_s)

    @torch._dynamo.register_backend(name="slow")
    def slow(graph, inputs):
        watch.abandon()
        was_reported.append(stuck.wait(4 * limit_s))
        return graph.forward

    model = load(request.model, Precision.FLOAT32)
    compile_model(model, NOWHERE, backend="slow")
    watch.begin(batch_key_of(request))
    with watch.on_this_thread():
        LocalRunner(model).generate(request)
    watch.end()
    assert not was_reported[0]


def test_nothing_is_compiled_on_a_cpu_unless_it_is_requested():
    model = load("sd15-tiny", Precision.FLOAT32)
    compilation = compile_model(model, NOWHERE)
    assert compilation.modes == {"unet": "eager", "vae": "eager"}
    assert compilation.warnings == []
    assert not isinstance(model.components["unet"].forward, RegionForward)


def test_convolutions_are_turned_round_where_they_are():
    memory = torch.randn(4 + 8 * 4 * 9)
    layer = nn.Conv2d(4, 8, 3, bias=False)
    layer.weight = nn.Parameter(memory[4:].view(8, 4, 3, 3), requires_grad=False)
    before, image = layer.weight.clone(), torch.randn(1, 4, 8, 8)
    expected = layer(image)
    use_channels_last(layer)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert layer.weight.data_ptr() == memory[4:].data_ptr()
    assert torch.equal(layer.weight, before)
    assert torch.allclose(layer(image), expected, atol=1e-6)


def test_second_model_with_the_same_decoder_leaves_it_as_it_is():
    first = load("flux-tiny", Precision.BFLOAT16)
    compile_model(first, NOWHERE, backend="eager")
    forward = first.components["vae"].decoder.forward
    assert compile_model(first, NOWHERE).modes == {"transformer": "jit", "vae": "jit"}
    assert first.components["vae"].decoder.forward is forward


class TestPackages:
    """What a worker does with what a store holds."""

    @pytest.fixture(scope="class")
    def model(self):
        return load("sd15-tiny", Precision.FLOAT32)

    @pytest.fixture
    def decoder(self, model):
        return model.components["vae"].decoder

    @pytest.fixture
    def form(self, decoder):
        calls = [
            Call.of((torch.randn(rows, 4, side, 4),), {}, CPU) for rows, side in ((2, 6), (3, 8))
        ]
        return form_of(decoder, *calls)

    def test_code_that_is_none_is_refused_and_the_model_runs_eagerly(self, model, form, tmp_path):
        (regions,) = (
            find_regions(model.components["vae"], region)
            for region in model.spec.family.regions
            if region.component == "vae"
        )
        built = tmp_path / "built.pt2"
        built.write_bytes(b"no package")
        store = CompiledStore(tmp_path)
        store.put(compile_key_of(CPU), next(iter(regions)), form, built)
        compilation = compile_model(model, store)
        assert compilation.modes["vae"] == "eager"
        assert "does not run here (RuntimeError)" in compilation.warnings[0]
        assert generate(model).shape == (1, 3, 64, 64)

    def test_right_code_is_accepted(self, decoder, form):
        verify(decoder, self.compiled(decoder, form, lambda result: result))

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda result: result * 1.02,
            lambda result: result.flip(-1),
            lambda result: torch.full_like(result, torch.nan),
        ],
        ids=["scaled", "mirrored", "nan"],
    )
    def test_code_that_computes_something_else_is_refused(self, decoder, form, spoil):
        with pytest.raises(UnusablePackage, match="something else than Decoder"):
            verify(decoder, self.compiled(decoder, form, spoil))

    def test_call_of_another_form_is_refused(self, decoder, form):
        compiled = self.compiled(decoder, form, lambda result: result)
        for latents in (
            torch.randn(2, 4, 6, 4, dtype=torch.float16),
            torch.randn(2, 8, 6, 4),
            torch.randn(4, 6, 4),
        ):
            with pytest.raises(NotCompiledFor):
                compiled(decoder, Call.of((latents,), {}, CPU))
        with pytest.raises(NotCompiledFor):
            compiled(decoder, Call.of((torch.randn(2, 4, 6, 4), None), {}, CPU))

    def compiled(self, decoder, form, change):
        """Stands in for loaded code: the region itself, and a change of what it computes."""

        def run(tensors):
            return [change(decoder(tensors[-1]))]

        return PackageCompiled(run, form)


class Level(nn.Module):
    """A region of a UNet, as far as its calls matter."""

    num_upsamplers = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, sample, timestep, *, return_dict=True):
        return (sample * self.weight, timestep)


class CallList:
    """Stands in for compiled code, and keeps the calls that it gets."""

    def __init__(self):
        self.calls = []

    def __call__(self, region, call):
        self.calls.append(call)
        return "compiled"


@pytest.fixture
def region():
    return Level()


@pytest.fixture
def compiled(region):
    calls = CallList()
    compilation = Compilation(model="tiny", modes={"unet": "jit"})
    region.forward = RegionForward(region, "unet", calls, compilation)
    return calls


@pytest.mark.parametrize(
    ("sides", "is_compiled"), [((8, 12), True), ((8, 10), False), ((9, 8), False)]
)
def test_sides_that_a_unet_cannot_halve_run_eagerly(region, compiled, sides, is_compiled):
    result = region(torch.ones(2, 4, *sides), torch.tensor(1))
    assert (result == "compiled") == is_compiled


def test_timestep_has_one_type_whatever_the_scheduler_gives(region, compiled):
    for timestep in (torch.tensor(999), torch.tensor(999.0), torch.tensor(999.0).double()):
        region(torch.ones(2, 4, 8, 8), timestep)
    assert {leaf.dtype for call in compiled.calls for leaf in call.tensors} == {torch.float32}
    assert len({call.leaves[1].item() for call in compiled.calls}) == 1


def test_keywords_may_come_in_any_order(region, compiled):
    sample, timestep = torch.ones(2, 4, 8, 8), torch.tensor(1.0)
    region(sample=sample, timestep=timestep, return_dict=False)
    region(return_dict=False, timestep=timestep, sample=sample)
    first, second = compiled.calls
    assert first.spec == second.spec


def test_slices_come_as_compiled_code_wants_them(region, compiled):
    whole = torch.arange(4 * 3 * 8 * 8.0).reshape(4, 3, 8, 8)
    odd = torch.arange(193.0)[1:].view(1, 3, 8, 8)
    for part in (whole[:, 1:], whole[:1, 1:], whole[..., :4], odd):
        region(part, torch.tensor(1.0))
        given = compiled.calls[-1].leaves[0]
        assert torch.equal(given, part)
        assert given.data_ptr() % 16 == 0
        assert given.stride() == torch.empty(part.shape).stride()


def test_kind_tells_layouts_apart_and_not_values():
    def kind(**changes):
        layer = nn.Linear(16, 16, **changes)
        return kind_of(layer, layer)

    assert kind() == kind()
    assert len({kind(), kind(bias=False), kind(dtype=torch.bfloat16)}) == 3
    quantized = nn.Sequential(nn.Linear(16, 16, dtype=torch.bfloat16))
    before = kind_of(quantized, quantized)
    convert(quantized, Precision.FLOAT8_DYNAMIC, CPU)
    assert kind_of(quantized, quantized) != before


class Small(nn.Module):
    """A region with a float8 layer, a plain one, and two dimensions of any size."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 32, dtype=torch.bfloat16)
        self.outer = nn.Linear(32, 32, dtype=torch.bfloat16)

    def forward(self, tokens, *, gate=None, scale=None):
        return (tokens + self.outer(nn.functional.silu(self.inner(tokens))) * scale,)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """File and form of inductor's own code for a Small, from weights that no other test has."""
    region = small(seed=0)
    calls = [
        Call.of((torch.randn(*shape, 32).bfloat16(),), arguments(), CPU)
        for shape in ((2, 24), (3, 10))
    ]
    path = tmp_path_factory.mktemp("package") / "Small.pt2"
    form = build_package(
        region, calls[0], calls[1], {"aot_inductor.compile_wrapper_opt_level": "O0"}, path
    )
    return path, form


@pytest.fixture(scope="module")
def package(built):
    path, form = built
    return PackageCompiled(open_package(path), form)


def small(seed):
    torch.manual_seed(seed)
    region = Small().requires_grad_(False)
    convert(region.inner, Precision.FLOAT8_DYNAMIC, CPU)
    return region


def arguments():
    return {"gate": None, "scale": torch.tensor(0.5)}


def test_package_is_opened_without_a_compiler(built, monkeypatch):
    """There may be none in a container, and where there is one it takes seconds."""

    def no_compiler():
        raise AssertionError("the processor's instructions were tried")

    monkeypatch.setattr("torch._inductor.cpu_vec_isa.pick_vec_isa", no_compiler)
    assert callable(open_package(built[0]))


def test_package_serves_all_sizes_and_all_regions_of_its_kind(package):
    for seed, shape in itertools.product((0, 1), ((1, 1), (1, 40), (4, 3), (16, 64))):
        region = small(seed)
        call = Call.of((torch.randn(*shape, 32).bfloat16(),), arguments(), CPU)
        with torch.inference_mode():
            (found,), (expected,) = package(region, call), region(call.leaves[0], **arguments())
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 0.02 * expected.abs().max()
    verify(small(2), package)


def test_package_is_not_used_for_more_than_32_bits_can_index(package):
    """Its largest tensor on the way is as large as its argument, but for one number."""
    limit = package.form.max_elements
    assert 0.99 * 2**31 < limit < 1.01 * 2**31
    tight = PackageCompiled(lambda tensors: [], replace(package.form, max_elements=4 * 32 - 1))
    call = Call.of((torch.randn(1, 4, 32).bfloat16(),), arguments(), CPU)
    with pytest.raises(NotCompiledFor):
        tight(small(0), call)


def test_package_follows_weights_that_are_moved(package):
    region = small(seed=3)
    call = example_call(package.form, CPU)
    before = package(region, call)[0]
    storages = [tensor.untyped_storage() for tensor in read_weights(weight_slots(region))]
    kept = [storage.clone() for storage in storages]
    for storage in storages:
        storage.resize_(0)
    for storage, copy in zip(storages, kept, strict=True):
        storage.resize_(copy.nbytes())
        storage.copy_(copy)
    assert torch.equal(package(region, call)[0], before)


class TestTool:
    """What scripts/compile does before and after it compiles."""

    @pytest.fixture(scope="class")
    def model(self):
        return load("flux-tiny", Precision.FLOAT8_DYNAMIC)

    def test_what_differs_between_two_batches_may_differ(self, model):
        tasks = list_tasks(model)
        assert [task.kind.split("-")[0] for task in tasks] == [
            "FluxTransformerBlock",
            "FluxSingleTransformerBlock",
            "Decoder",
        ]
        regions = {task.kind: task.region for task in tasks}
        wide, narrow = (watch_calls(model, sample, regions) for sample in samples(model))
        forms = [form_of(task.region, wide[task.kind], narrow[task.kind]) for task in tasks]
        shapes = [[leaf.shape for leaf in form.leaves if leaf.shape] for form in forms]
        block = [(None, None, 128), (None, None, 128), (None, 32), (None, 32), (None, 128)]
        assert shapes == [block, block, [(None, 16, None, None)]]

    def test_only_what_is_missing_or_damaged_is_left_to_build(self, model, tmp_path):
        store = CompiledStore(tmp_path)
        first, second, third = tasks_left(model, store)
        form = CallForm(arguments="", result="", leaves=(), max_elements=1)
        for task in (first, second):
            (tmp_path / "built.pt2").write_bytes(b"code")
            package = store.put(compile_key_of(CPU), task.kind, form, tmp_path / "built.pt2")
        package.path.write_bytes(b"damage")
        assert [task.kind for task in tasks_left(model, store)] == [second.kind, third.kind]
        assert len(tasks_left(model, store, is_anew=True)) == 3

    def test_packages_that_do_not_run_are_no_success(self, model, tmp_path):
        with pytest.raises(CannotPackage, match="flux-tiny: transformer, vae"):
            check_packages(model, CompiledStore(tmp_path))

    def test_listing_an_empty_directory_is_no_fault(self, tmp_path, capsys):
        assert main(["--list", str(tmp_path), "--device", "cpu"]) == 0
        assert "holds no packages" in capsys.readouterr().out

    def test_unknown_model_is_refused_with_those_that_are_there(self, tmp_path, capsys):
        given = ["--model", "flux-2", "--to", str(tmp_path), "--device", "cpu"]
        assert main(given) == 1
        expected = "flux-tiny, flux-kontext-tiny, sd35-tiny, sdxl-tiny, sd15-tiny"
        assert expected in capsys.readouterr().err
