"""Plans of stacks of full-size models, on any GPU."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stack_cases import FOUR, NETS_GIB, needs_of, nets

from pixpod.engine.component_key import ComponentKey
from pixpod.engine.memory.budget import budget_for
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.memory.shortages import find_shortages
from pixpod.errors import ModelUnavailable
from pixpod.families import GIB

GPUS_GIB = {"24 GB": 23.5, "48 GB": 47.5, "80 GB": 79.5}


def plan_of(title, gib):
    return make_plan(needs_of(*FOUR[title], nets()), budget_for(None, gib))


@pytest.mark.parametrize("gpu", GPUS_GIB)
@pytest.mark.parametrize("title", FOUR)
def test_four_stacks_fit_on_usual_gpus(title, gpu):
    plan = plan_of(title, GPUS_GIB[gpu])
    away = {str(key) for key in plan.offloaded}
    if gpu != "24 GB" or title != "FLUX and SDXL":
        assert away == set()
    else:
        assert away == {
            "flux-dev/text_encoder_2",
            "sdxl/text_encoder_2",
            "extras/flux-canny in bfloat16",
            "extras/canny in float16",
        }


def test_more_of_a_stack_stays_on_a_larger_gpu():
    plans = [plan_of("FLUX and SDXL", gib) for gib in (18, 23.5, 32, 47.5)]
    counts = [len(plan.offloaded) for plan in plans]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1] > counts[2] > counts[3]


def test_slots_and_extras_leave_less_room_for_the_batch():
    plan = plan_of("SDXL heavy", 23.5)
    (need,) = plan.needs
    stages = {stack.name: stack.stages for stack in need.stacks}
    sizes = [
        plan.max_batch_size("sdxl", each, 8)
        for each in (need.stages, stages["sdxl+canny+depth+loras=256"])
    ]
    assert sizes == [5, 3]


def test_refusal_says_what_to_leave_out():
    with pytest.raises(ModelUnavailable) as caught:
        plan_of("SDXL heavy", 11.5)
    assert str(caught.value) == (
        "model_unavailable: sdxl+canny+depth+loras=256 in float16 needs 12.92 GiB of the GPU for "
        "its stage denoise (unet 4.78, canny 2.33, depth 2.33, activations 1.0, LoRAs 1.48, CUDA "
        "1.0), and there are 11.5: choose a GPU with 12.92 GiB for models, or leave canny out "
        "of it, which takes 10.59 GiB, or leave depth out of it, which takes 10.59 GiB, or leave "
        "loras=256 out of it, which takes 11.44 GiB"
    )
    with pytest.raises(ModelUnavailable, match=r"or leave canny and depth out of it, which takes"):
        plan_of("SDXL heavy", 10.0)


def test_model_that_does_not_fit_is_refused_without_its_stacks():
    with pytest.raises(ModelUnavailable) as caught:
        plan_of("SDXL heavy", 6.0)
    assert str(caught.value).count(" needs ") == 1
    assert str(caught.value).startswith("model_unavailable: sdxl in float16 needs 6.78 GiB")


def test_extra_on_demand_goes_before_what_was_used_longer_ago():
    plan = plan_of("FLUX and SDXL", GPUS_GIB["24 GB"])
    keys = {str(key): key for need in plan.needs for key in need.sizes}
    planned, on_demand = keys["extras/canny in float16"], keys["extras/depth in float16"]
    assert planned in plan.offloaded
    assert on_demand not in plan.sizes
    on_gpu = {**plan.resident, planned: 2 * GIB, on_demand: 2 * GIB}
    working = plan.budget.free_bytes - sum(on_gpu.values()) + GIB
    assert plan.next_transfers(on_gpu, {}, working).offload == (on_demand,)


# --- any stacks with nets of any size on any GPU -----------------------------------------------

SERVED = ["flux-dev", "sdxl"]
ENTRIES = [
    "studio",
    "heavy",
    "sdxl+canny",
    "sdxl+depth+loras=16",
    "flux-dev+loras=128",
    "flux-dev+flux-canny+loras",
]
gibs = st.one_of(st.sampled_from(list(GPUS_GIB.values())), st.integers(6, 90).map(float))
net_gibs = st.floats(0.1, 12).map(lambda gib: round(gib, 1))


@st.composite
def deployments(draw):
    """The needs of some models, each with some stacks."""
    models = draw(st.permutations(SERVED).flatmap(lambda m: st.sampled_from([m, m[:1]])))
    extras = nets(**{name: draw(net_gibs) for name in NETS_GIB})
    usable = [e for e in ENTRIES if e in ("studio", "heavy") or e.partition("+")[0] in models]
    stacks = draw(st.lists(st.sampled_from(usable), unique=True, max_size=3))
    return needs_of(models, stacks, extras), extras


def planned(needs, gib):
    try:
        return make_plan(needs, budget_for(None, gib))
    except ModelUnavailable:
        return None


@given(deployment=deployments(), gib=gibs)
def test_each_stage_of_each_stack_fits_beside_what_is_resident(deployment, gib):
    needs, _ = deployment
    plan = planned(needs, gib)
    if plan is None:
        return
    assert not plan.resident.keys() & plan.offloaded.keys()
    places = {**plan.resident, **plan.offloaded}
    for need in needs:
        for stage in (*need.stages, *(s for stack in need.declared_stacks for s in stack.stages)):
            wanted = need.components_of(stage)
            assert set(stage.components) == {key.component for key in wanted}, "all are counted"
            assert wanted.keys() <= places.keys()
            used = sum({**plan.resident, **wanted}.values()) + stage.working_bytes(1)
            assert used <= plan.budget.free_bytes
        declared = {name for stack in need.declared_stacks for name in stack.parts}
        on_demand = [key for key in need.sizes if key.is_extra and key.component not in declared]
        assert not places.keys() & set(on_demand)


@given(deployment=deployments(), gib=gibs)
def test_nothing_is_offloaded_that_could_stay(deployment, gib):
    needs, _ = deployment
    plan = planned(needs, gib)
    if plan is None:
        return
    for key, size in plan.offloaded.items():
        resident = {**plan.resident, key: size}
        assert any(
            sum({**resident, **need.components_of(stage)}.values()) + stage.working_bytes(1)
            > plan.budget.free_bytes
            for need in needs
            for stage in need.planned_stages
        )


@given(deployment=deployments(), gib=gibs, more=st.floats(0, 60))
def test_more_memory_never_makes_a_stack_unfit(deployment, gib, more):
    needs, _ = deployment
    if planned(needs, gib) is not None:
        assert planned(needs, gib + more) is not None


@given(deployment=deployments(), gib=gibs)
def test_numbers_of_a_refusal_add_up(deployment, gib):
    needs, extras = deployment
    budget = budget_for(None, gib)
    assert budget is not None
    shortages = find_shortages(needs, budget)
    assert bool(shortages) == (planned(needs, gib) is None)
    for each in shortages:
        assert each.gpu_bytes == budget.gpu_bytes < each.needed_bytes == sum(each.parts.values())
        assert each.parts["CUDA"] == budget.overhead_bytes
        listed = re.findall(r" ([\d.]+)(?=, |\))", str(each).partition("(")[2])
        assert sum(map(float, listed)) == pytest.approx(each.needed_bytes / GIB, abs=0.05)
        stack = each.subject.partition(" in ")[0]
        for way in each.ways:
            found = re.fullmatch(r"leave (.+) out of it, which takes ([\d.]+) GiB", way)
            if found:
                check_way(stack, found[1].split(" and "), float(found[2]), extras, budget)


def check_way(stack, dropped, gib, extras, budget):
    """The stack without these parts fits, and takes just so much."""
    model, *parts = stack.split("+")
    left = "+".join([model, *(part for part in parts if part not in dropped)])
    (need,) = needs_of([model], [left] if "+" in left else [], extras)
    stages = [stage for each in need.declared_stacks for stage in each.stages] or need.stages
    largest = max(map(need.stage_bytes, stages)) + budget.overhead_bytes
    assert largest <= budget.gpu_bytes
    assert largest / GIB == pytest.approx(gib, abs=0.006)


@given(deployment=deployments(), gib=gibs, data=st.data())
def test_extras_that_no_stack_has_are_the_first_to_be_offloaded(deployment, gib, data):
    """Whatever runs in which order, and nothing ever exceeds the budget."""
    needs, _ = deployment
    plan = planned(needs, gib)
    if plan is None:
        return
    stages = [
        (need.components_of(stage), stage.working_bytes(1))
        for need in needs
        for stage in (*need.stages, *(each for stack in need.stacks for each in stack.stages))
    ]
    on_gpu: dict[ComponentKey, int] = {}
    for wanted, working in data.draw(st.lists(st.sampled_from(stages), max_size=15)):
        short = sum({**on_gpu, **wanted}.values()) + working - plan.budget.free_bytes
        idle = {key: size for key, size in on_gpu.items() if key not in wanted}
        transfers = plan.next_transfers(on_gpu, wanted, working)
        assert transfers.fits
        for stays in (plan.sizes, plan.resident):
            others = sum(size for key, size in idle.items() if key not in stays)
            assert others < short or not set(transfers.offload) & stays.keys()
        for key in transfers.offload:
            del on_gpu[key]
        on_gpu = {**{k: v for k, v in on_gpu.items() if k not in wanted}, **wanted}
        assert sum(on_gpu.values()) + working <= plan.budget.free_bytes
