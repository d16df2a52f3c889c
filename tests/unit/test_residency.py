"""Which parts of models live on a card, for made-up models and for those of the catalog."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixpod.catalog import load_catalog
from pixpod.engine.memory.footprints import GIB, Footprints, Working
from pixpod.engine.memory.needs import Need, Part, need_of
from pixpod.engine.memory.residency import Budget, budget_for, make_plan
from pixpod.errors import ModelUnavailable
from pixpod.families import Precision

FOOTPRINTS = Footprints()
CATALOG = load_catalog()
FP8, BF16, FP16 = Precision.FLOAT8_DYNAMIC, Precision.BFLOAT16, Precision.FLOAT16

FLUX = ("flux-dev", QuantizationPlan(precision=FP8, t5=FP8))
FLUX_T5_16 = ("flux-dev", QuantizationPlan(precision=FP8))
FLUX_16 = ("flux-dev", QuantizationPlan(precision=BF16))
SDXL = ("sdxl", QuantizationPlan(precision=FP16))
SD15 = ("sd15", QuantizationPlan(precision=FP16))


def needs_of(*models):
    return [need_of(CATALOG[name], held, FOOTPRINTS) for name, held in models]


def plan_of(*models, gib):
    return make_plan(needs_of(*models), budget_for(FOOTPRINTS, None, gib))


def parked(plan):
    return {str(part) for part in plan.parked}


def used_gib(plan):
    """All that is resident, CUDA, and the hungriest image of a default size."""
    working = max(need.working.needed_bytes(need.size, 1) for need in plan.needs)
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
            id="24 GB: with sdxl by parking",
        ),
        pytest.param([FLUX_T5_16], 23, {"flux-dev/text_encoder_2"}, id="24 GB: large T5 is parked"),
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
def test_plans_of_usual_cards(models, gib, away):
    assert parked(plan_of(*models, gib=gib)) == away


def test_flux_in_8_bits_takes_what_was_computed():
    assert used_gib(plan_of(FLUX, gib=23)) == pytest.approx(19.5, abs=0.1)
    assert used_gib(plan_of(FLUX_T5_16, SDXL, gib=40)) < 40 * 1e9 / GIB


def test_idle_denoiser_is_parked_where_large_encoders_are_not_enough():
    assert "sdxl/unet in float16" in parked(plan_of(FLUX, SDXL, gib=19))
    assert "flux-dev/transformer in float8_dynamic" in parked(plan_of(SDXL, FLUX, gib=19))


def test_what_cannot_fit_is_refused_with_what_would():
    with pytest.raises(ModelUnavailable) as caught:
        plan_of(SDXL, FLUX_16, gib=23)
    text = str(caught.value)
    assert text.startswith(
        "model_unavailable: flux-dev in bfloat16 needs 25.73 GiB of the card at once "
        "(transformer 22.17, vae 0.16, to work with 2.4, CUDA 1.0), and there are 23.0: "
    )
    assert "run it in 8 bits, which takes 14.66 GiB" in text
    assert "choose a card with 25.73 GiB" in text
    assert text.endswith("leave flux-dev out")
    with pytest.raises(ModelUnavailable) as caught:
        plan_of(FLUX, gib=8)
    assert "8 bits" not in str(caught.value)


def test_all_that_do_not_fit_are_named():
    with pytest.raises(ModelUnavailable, match=r"flux-dev in .*; sdxl in "):
        plan_of(FLUX, SDXL, SD15, gib=6)


def test_limit_counts_in_full_and_a_card_not_quite():
    def card_bytes(memory_bytes, limit_gib):
        budget = budget_for(FOOTPRINTS, memory_bytes, limit_gib)
        return budget and budget.card_bytes

    assert card_bytes(None, None) is None
    assert card_bytes(80 * GIB, None) == 80 * GIB - GIB // 2
    assert card_bytes(80 * GIB, 24.0) == 24 * GIB
    assert card_bytes(16 * GIB, 24.0) == 16 * GIB


def test_batches_grow_with_what_is_left():
    def rows(*models, gib):
        return plan_of(*models, gib=gib).max_batch_size(models[0][0], (1024, 1024), 8)

    assert rows(SDXL, gib=23) == 7
    assert rows(SDXL, gib=44) == 8
    assert rows(FLUX, gib=23) == 2
    assert rows(FLUX_T5_16, gib=78) == 8
    assert plan_of(SDXL, gib=11).max_batch_size("sdxl", (2048, 1024), 8) == 1


def test_without_a_budget_all_stays_and_all_fits():
    plan = make_plan(needs_of(FLUX_16, SDXL), None)
    assert not plan.parked
    assert plan.max_batch_size("sdxl", (1024, 1024), 8) == 8
    moves = plan.next_transfers({}, plan.needs[0].parts, 10**15)
    assert (moves.evict, set(moves.bring), moves.fits) == ((), set(plan.needs[0].parts), True)


def test_summary_is_for_a_log():
    summary = plan_of(FLUX, SDXL, gib=23).summary()
    assert summary["parked_gib"] == {"flux-dev/text_encoder_2": 4.57, "sdxl/text_encoder_2": 1.29}
    assert summary["swap_s"] == {"flux-dev in float8_dynamic": 0.25, "sdxl in float16": 0.07}


# --- any models on any card --------------------------------------------------------------------

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae")


def made_up_need(name, sizes):
    precision = {"unet": "float16"}
    parts = {
        Part(model=name, component=each, precision=precision.get(each, "")): size
        for each, size in zip(COMPONENTS, sizes, strict=True)
    }
    listed = list(parts.items())
    return Need(
        model=name,
        precision=FP16,
        text=dict(listed[:2]),
        image=dict(listed[2:]),
        text_bytes=1,
        working=Working(fixed_bytes=2, square_bytes=3),
        size=(1024, 1024),
        saved_bytes=0,
    )


def with_shared(needs, has_shared):
    """All but the denoisers of those that share are the first one's."""
    first = needs[0]
    vae = {part: size for part, size in first.image.items() if part.component == "vae"}
    for number, need in enumerate(needs):
        if has_shared[number]:
            own = {part: size for part, size in need.image.items() if part.component != "vae"}
            needs[number] = replace(need, text=first.text, image={**own, **vae})
    return needs


needs_lists = st.builds(
    with_shared,
    st.lists(st.tuples(*[st.integers(1, 30)] * len(COMPONENTS)), min_size=1, max_size=3).map(
        lambda rows: [made_up_need(f"model-{number}", row) for number, row in enumerate(rows)]
    ),
    st.tuples(*[st.booleans()] * 3),
)
budgets = st.integers(10, 150).map(lambda size: Budget(card_bytes=size, overhead_bytes=4))


def planned(needs, budget):
    """None where it is refused; then a stage of a model is larger than the card."""
    try:
        return make_plan(needs, budget)
    except ModelUnavailable:
        assert any(
            sum(stage.values()) + working > budget.free_bytes
            for need in needs
            for stage, working in need.stages()
        )
        return None


@given(needs=needs_lists, budget=budgets)
def test_each_stage_works_beside_what_is_resident(needs, budget):
    plan = planned(needs, budget)
    if plan is None:
        return
    assert {**plan.resident, **plan.parked} == {
        part: size for need in needs for part, size in need.parts.items()
    }
    for need in needs:
        for stage, working in need.stages():
            there = {**plan.resident, **stage}
            assert sum(there.values()) + working <= budget.free_bytes
    assert planned(needs, budget) == plan


@given(needs=needs_lists, budget=budgets)
def test_last_part_to_be_parked_had_to_be(needs, budget):
    plan = planned(needs, budget)
    if plan is None or not plan.parked:
        return
    last, size = list(plan.parked.items())[-1]
    resident = {**plan.resident, last: size}
    assert any(
        sum({**resident, **stage}.values()) + working > budget.free_bytes
        for need in needs
        for stage, working in need.stages()
    )


@given(needs=needs_lists, budget=budgets, data=st.data())
def test_budget_is_never_exceeded_and_who_asks_is_always_admitted(needs, budget, data):
    plan = planned(needs, budget)
    if plan is None:
        return
    on_card: dict[Part, int] = {}
    stages = [stage for need in needs for stage in need.stages()]
    for wanted, working in data.draw(st.lists(st.sampled_from(stages), max_size=25)):
        before = dict(on_card)
        moves = plan.next_transfers(on_card, wanted, working)
        assert moves == plan.next_transfers(on_card, wanted, working)
        assert moves.fits
        assert set(moves.bring) == wanted.keys() - before.keys()
        assert not set(moves.evict) & wanted.keys()
        for part in moves.evict:
            on_card.pop(part)
        for part in wanted:
            on_card.pop(part, None)
            on_card[part] = wanted[part]
        used = sum(on_card.values()) + working
        assert used <= budget.free_bytes
        for part in moves.evict:
            assert used + before[part] > budget.free_bytes, "it could have stayed"
        if sum({**before, **wanted}.values()) + working <= budget.free_bytes:
            assert not moves.evict


@given(
    order=st.permutations(range(6)),
    size=st.integers(1, 60),
    in_use=st.sets(st.integers(0, 5), max_size=3),
)
def test_what_was_used_longest_ago_goes_first(order, size, in_use):
    parts = [Part(model="m", component=str(number)) for number in range(6)]
    budget = Budget(card_bytes=60, overhead_bytes=0)
    plan = make_plan([], budget)
    on_card = {parts[number]: 10 for number in order}
    busy = {parts[number] for number in in_use}
    moves = plan.next_transfers(on_card, {Part(model="new", component="x"): size}, 0, busy)
    idle = [part for part in on_card if part not in busy]
    expected = idle[: -(-size // 10)]
    assert moves.evict == tuple(expected)
    assert moves.fits == (len(expected) * 10 >= size)


def test_what_is_to_stay_goes_after_what_is_parked():
    plan = plan_of(FLUX, SDXL, gib=23)
    resident = dict(plan.resident)
    t5 = Part(model="flux-dev", component="text_encoder_2")
    on_card = {**resident, t5: plan.parked[t5]}
    wanted = {Part(model="other", component="unet"): 2 * GIB}
    assert plan.next_transfers(on_card, wanted, 0).evict == (t5,)
