"""Plans of what lives on a GPU, for made-up models and for those of the catalog."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixpod.catalog import load_catalog
from pixpod.engine.component_key import ComponentKey
from pixpod.engine.memory.budget import Budget, budget_for
from pixpod.engine.memory.needs import Need, all_sizes, need_of
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.errors import ModelUnavailable
from pixpod.extras import ExtraKind, ExtraSpec, load_extras
from pixpod.families import GIB, Precision
from pixpod.families import SDXL as SDXL_FAMILY
from pixpod.job import ControlOptions
from pixpod.methods import StageName, StagePlan, method_of, stages_of

CATALOG = load_catalog()
EXTRAS = load_extras()
FP8, BF16, FP16 = Precision.FLOAT8_DYNAMIC, Precision.BFLOAT16, Precision.FLOAT16

FLUX = ("flux-dev", QuantizationPlan(precision=FP8, t5=FP8))
FLUX_T5_16 = ("flux-dev", QuantizationPlan(precision=FP8))
FLUX_16 = ("flux-dev", QuantizationPlan(precision=BF16))
SDXL = ("sdxl", QuantizationPlan(precision=FP16))
SD15 = ("sd15", QuantizationPlan(precision=FP16))


def needs_of(*models):
    return [need_of(CATALOG[name], plan) for name, plan in models]


def plan_of(*models, gib):
    return make_plan(needs_of(*models), budget_for(None, gib))


def offloaded(plan):
    return {str(key) for key in plan.offloaded}


def used_gib(plan):
    """GiB of everything that is resident, CUDA, and the largest stage of a default image."""
    working = max(stage.working_bytes(1) for need in plan.needs for stage in need.stages)
    return (sum(plan.resident.values()) + plan.budget.overhead_bytes + working) / GIB


@pytest.mark.parametrize(
    ("models", "gib", "away"),
    [
        pytest.param([FLUX], 23, set(), id="24 GB: flux in 8 bits"),
        pytest.param([SDXL, SD15], 15, set(), id="16 GB: the small ones"),
        pytest.param(
            [FLUX, SDXL],
            23,
            {"flux-dev/text_encoder_2", "sdxl/text_encoder_2"},
            id="24 GB: with sdxl by offloading",
        ),
        pytest.param(
            [FLUX_T5_16], 23, {"flux-dev/text_encoder_2"}, id="24 GB: large T5 is offloaded"
        ),
        pytest.param([FLUX_T5_16, SDXL], 40, set(), id="40 GB: flux and sdxl"),
        pytest.param(
            [("flux-dev", QuantizationPlan(precision=FP8, adaln=BF16)), SDXL, SD15],
            44,
            set(),
            id="48 GB: three families",
        ),
        pytest.param(
            [FLUX_T5_16, ("flux-schnell", QuantizationPlan(precision=FP8)), SDXL, SD15],
            78,
            set(),
            id="80 GB: two variants of flux",
        ),
    ],
)
def test_plans_of_usual_gpus(models, gib, away):
    assert offloaded(plan_of(*models, gib=gib)) == away


def test_flux_in_8_bits_takes_what_was_computed():
    assert used_gib(plan_of(FLUX, gib=23)) == pytest.approx(19.5, abs=0.1)
    assert used_gib(plan_of(FLUX_T5_16, SDXL, gib=40)) < 40 * 1e9 / GIB


def test_idle_denoiser_is_offloaded_where_large_encoders_are_not_enough():
    assert "sdxl/unet in float16" in offloaded(plan_of(FLUX, SDXL, gib=19))
    assert "flux-dev/transformer in float8_dynamic" in offloaded(plan_of(SDXL, FLUX, gib=19))


def test_what_cannot_fit_is_refused_with_what_would():
    with pytest.raises(ModelUnavailable) as caught:
        plan_of(SDXL, FLUX_16, gib=23)
    text = str(caught.value)
    assert text.startswith(
        "model_unavailable: flux-dev in bfloat16 needs 23.87 GiB of the GPU for its stage denoise "
        "(transformer 22.17, activations 0.7, CUDA 1.0), and there are 23.0: "
    )
    assert "run it in 8 bits, which takes 12.8 GiB" in text
    assert "choose a GPU with 23.87 GiB" in text
    assert text.endswith("leave flux-dev out")
    with pytest.raises(ModelUnavailable) as caught:
        plan_of(FLUX, gib=8)
    assert "8 bits" not in str(caught.value)


def test_all_that_do_not_fit_are_named():
    with pytest.raises(ModelUnavailable, match=r"flux-dev in .*; sdxl in "):
        plan_of(FLUX, SDXL, SD15, gib=6)


def test_limit_counts_in_full_and_a_gpu_not_quite():
    def gpu_bytes(memory_bytes, limit_gib):
        budget = budget_for(memory_bytes, limit_gib)
        return budget and budget.gpu_bytes

    assert gpu_bytes(None, None) is None
    assert gpu_bytes(80 * GIB, None) == 80 * GIB - GIB // 2
    assert gpu_bytes(80 * GIB, 24.0) == 24 * GIB
    assert gpu_bytes(16 * GIB, 24.0) == 16 * GIB


def test_batches_grow_with_what_is_left():
    def limit(*models, gib, width=1024):
        spec = CATALOG[models[0][0]]
        stages = stages_of(spec, method_of(spec, spec.default_request(width=width, height=1024)))
        return plan_of(*models, gib=gib).max_batch_size(spec.name, stages, 8)

    assert limit(SDXL, gib=23) == 7
    assert limit(SDXL, gib=44) == 8
    assert limit(FLUX, gib=23) == 2
    assert limit(FLUX_T5_16, gib=78) == 8
    assert limit(SDXL, gib=11, width=2048) == 1


def test_without_a_budget_all_stays_and_all_fits():
    plan = make_plan(needs_of(FLUX_16, SDXL), None)
    assert not plan.offloaded
    assert plan.max_batch_size("sdxl", plan.needs[1].stages, 8) == 8
    transfers = plan.next_transfers({}, plan.needs[0].sizes, 10**15)
    assert transfers.offload == ()
    assert set(transfers.onload) == set(plan.needs[0].sizes)
    assert transfers.fits


def nets_of(*sizes_gib):
    return {
        f"net-{number}": ExtraSpec(
            name=f"net-{number}",
            kind=ExtraKind.CONTROLNET,
            family=SDXL_FAMILY,
            licence="MIT",
            types=(f"type-{number}",),
            gib_16=size_gib,
        )
        for number, size_gib in enumerate(sizes_gib)
    }


def sdxl_with_nets(gib, *sizes_gib):
    need = need_of(CATALOG["sdxl"], SDXL[1], extras=nets_of(*sizes_gib))
    return make_plan([need], budget_for(None, gib))


def controlled_stages(*nets):
    spec = CATALOG["sdxl"]
    controls = tuple(ControlOptions(net=net, scale=1.0, start=0.0, end=1.0) for net in nets)
    return stages_of(spec, method_of(spec, spec.default_request(controls=controls)))


def test_extras_keep_nothing_else_off_the_gpu():
    without, with_nets = sdxl_with_nets(11), sdxl_with_nets(11, 2.33, 2.33)
    assert (with_nets.resident, with_nets.offloaded) == (without.resident, without.offloaded)


def test_extra_that_does_not_fit_beside_its_model_is_refused_by_name():
    assert sdxl_with_nets(12, 2.33)
    with pytest.raises(
        ModelUnavailable,
        match=r"sdxl in float16 with net-1 needs 12\.78 .*leave net-1 out of PIXPOD_EXTRAS",
    ):
        sdxl_with_nets(12, 2.33, 6.0)


def test_refiner_needs_room_in_the_place_of_the_denoiser_only():
    """The UNet takes 4.78 GiB, and activations with CUDA 2.0."""

    def plan_with(size_gib):
        refiner = replace(EXTRAS["sdxl-refiner"], gib_16=size_gib)
        need = need_of(CATALOG["sdxl"], SDXL[1], extras={refiner.name: refiner})
        return make_plan([need], budget_for(None, 8))

    assert plan_with(4.21)
    assert plan_with(5.9)
    with pytest.raises(ModelUnavailable, match=r"with sdxl-refiner needs 8\.1 .* stage refine"):
        plan_with(6.1)


def test_extras_of_a_request_leave_less_room_for_its_batch():
    plan = sdxl_with_nets(12, 2.33, 2.33)
    sizes = [
        plan.max_batch_size("sdxl", controlled_stages(*nets), 8)
        for nets in ((), ("net-0",), ("net-0", "net-1"))
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_summary_is_for_a_log():
    summary = plan_of(FLUX, SDXL, gib=23).summary()
    assert summary["offloaded_gib"] == {
        "flux-dev/text_encoder_2": 4.57,
        "sdxl/text_encoder_2": 1.29,
    }
    assert summary["onload_s"] == {"flux-dev in float8_dynamic": 0.25, "sdxl in float16": 0.07}


# --- any models on any card --------------------------------------------------------------------

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae")


def made_up_need(name, sizes):
    precision = {"unet": "float16"}
    keys = {
        each: ComponentKey(model=name, component=each, precision=precision.get(each, ""))
        for each in COMPONENTS
    }
    return Need(
        model=name,
        precision=FP16,
        denoiser="unet",
        keys=keys,
        sizes={keys[each]: size for each, size in zip(COMPONENTS, sizes, strict=True)},
        stages=(
            StagePlan(name=StageName.TEXT_ENCODE, components=COMPONENTS[:2], fixed_bytes=1),
            StagePlan(name=StageName.DENOISE, components=("unet",), fixed_bytes=2, image_bytes=1),
            StagePlan(name=StageName.DECODE, components=("vae",), fixed_bytes=2, image_bytes=3),
        ),
        saved_bytes=0,
    )


def with_shared(needs, has_shared):
    """Let the flagged models share all components but the denoiser with the first one."""
    first = needs[0]
    for number, need in enumerate(needs):
        if has_shared[number]:
            keys = {**first.keys, "unet": need.keys["unet"]}
            sizes = {key: {**first.sizes, **need.sizes}[key] for key in keys.values()}
            needs[number] = replace(need, keys=keys, sizes=sizes)
    return needs


needs_lists = st.builds(
    with_shared,
    st.lists(st.tuples(*[st.integers(1, 30)] * len(COMPONENTS)), min_size=1, max_size=3).map(
        lambda rows: [made_up_need(f"model-{number}", row) for number, row in enumerate(rows)]
    ),
    st.tuples(*[st.booleans()] * 3),
)
budgets = st.integers(10, 150).map(lambda size: Budget(gpu_bytes=size, overhead_bytes=4))


def stages_of_all(needs):
    """Return the sizes of components and the working bytes of each stage of each model."""
    return [
        (need.components_of(stage), stage.working_bytes(1))
        for need in needs
        for stage in need.stages
    ]


def planned(needs, budget):
    """Return None if it is refused; then a stage of a model is larger than the GPU."""
    try:
        return make_plan(needs, budget)
    except ModelUnavailable:
        assert any(
            need.stage_bytes(stage) > budget.free_bytes for need in needs for stage in need.stages
        )
        return None


@given(needs=needs_lists, budget=budgets)
def test_each_stage_works_beside_what_is_resident(needs, budget):
    plan = planned(needs, budget)
    if plan is None:
        return
    assert {**plan.resident, **plan.offloaded} == all_sizes(needs)
    for wanted, working in stages_of_all(needs):
        there = {**plan.resident, **wanted}
        assert sum(there.values()) + working <= budget.free_bytes
    assert planned(needs, budget) == plan


@given(needs=needs_lists, budget=budgets)
def test_last_component_to_be_offloaded_had_to_be(needs, budget):
    plan = planned(needs, budget)
    if plan is None or not plan.offloaded:
        return
    last, size = list(plan.offloaded.items())[-1]
    resident = {**plan.resident, last: size}
    assert any(
        sum({**resident, **wanted}.values()) + working > budget.free_bytes
        for wanted, working in stages_of_all(needs)
    )


@given(needs=needs_lists, budget=budgets, data=st.data())
def test_budget_is_never_exceeded_and_each_stage_is_always_admitted(needs, budget, data):
    plan = planned(needs, budget)
    if plan is None:
        return
    on_gpu: dict[ComponentKey, int] = {}
    stages = stages_of_all(needs)
    for wanted, working in data.draw(st.lists(st.sampled_from(stages), max_size=25)):
        before = dict(on_gpu)
        transfers = plan.next_transfers(on_gpu, wanted, working)
        assert transfers == plan.next_transfers(on_gpu, wanted, working)
        assert transfers.fits
        assert set(transfers.onload) == wanted.keys() - before.keys()
        assert not set(transfers.offload) & wanted.keys()
        for key in transfers.offload:
            on_gpu.pop(key)
        for key in wanted:
            on_gpu.pop(key, None)
            on_gpu[key] = wanted[key]
        used = sum(on_gpu.values()) + working
        assert used <= budget.free_bytes
        for key in transfers.offload:
            assert used + before[key] > budget.free_bytes, "it could have stayed"
        if sum({**before, **wanted}.values()) + working <= budget.free_bytes:
            assert not transfers.offload


@given(
    order=st.permutations(range(6)),
    size=st.integers(1, 60),
    in_use=st.sets(st.integers(0, 5), max_size=3),
)
def test_what_was_used_longest_ago_goes_first(order, size, in_use):
    keys = [ComponentKey(model="m", component=str(number)) for number in range(6)]
    budget = Budget(gpu_bytes=60, overhead_bytes=0)
    plan = make_plan([], budget)
    on_gpu = {keys[number]: 10 for number in order}
    busy = {keys[number] for number in in_use}
    transfers = plan.next_transfers(
        on_gpu, {ComponentKey(model="new", component="x"): size}, 0, busy
    )
    idle = [key for key in on_gpu if key not in busy]
    expected = idle[: -(-size // 10)]
    assert transfers.offload == tuple(expected)
    assert transfers.fits == (len(expected) * 10 >= size)


def test_what_is_to_stay_goes_after_what_is_offloaded():
    plan = plan_of(FLUX, SDXL, gib=23)
    resident = dict(plan.resident)
    t5 = ComponentKey(model="flux-dev", component="text_encoder_2")
    on_gpu = {**resident, t5: plan.offloaded[t5]}
    wanted = {ComponentKey(model="other", component="unet"): 2 * GIB}
    assert plan.next_transfers(on_gpu, wanted, 0).offload == (t5,)
