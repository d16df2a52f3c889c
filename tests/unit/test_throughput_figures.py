"""What the throughput benchmark makes of its figures: turns, ratios, slopes, bills, verdicts."""

from dataclasses import replace
from functools import partial

import pytest

from pixpod.pricing import WorkerLife
from pixpod_bench.throughput.cost import compare
from pixpod_bench.throughput.figures import Verdict, in_turns, ratio_of, slope
from pixpod_bench.throughput.memory import LOT, PER_JOBS, growth_of
from pixpod_bench.throughput.mixed_plan import OFF, ON, PLAIN, Plan, Side
from pixpod_bench.throughput.pixels import levels_apart
from pixpod_bench.throughput.report import Results, format_costs, format_verdicts
from pixpod_bench.throughput.workload import MODELS, SIZES, STEPS, mixed_jobs, same_size_jobs

PLAN = Plan(jobs=200, held=9, rounds=4, warm_ups=9)
LIFE = WorkerLife(start_s=4.0, run_s=10.0, idle_s=5.5, billed_s=20)


def test_sides_take_turns_and_none_is_always_first():
    order = []

    def run(side, number):
        order.append((number, side))

    found = in_turns({side: partial(run, side) for side in "AB"}, 3)
    assert order == [(0, "A"), (0, "B"), (1, "B"), (1, "A"), (2, "A"), (2, "B")]
    assert [len(samples) for samples in found.values()] == [3, 3]


def test_ratio_is_of_neighbours_in_time():
    """A machine that is three times slower in one round must not show."""
    ratio = ratio_of([2.0, 6.0, 2.2], [1.0, 3.0, 1.0])
    assert (ratio.median, ratio.lowest, ratio.highest) == (2.0, 2.0, 2.2)
    assert str(ratio) == "2.00 (2.00 ... 2.20)"


def test_slope_of_a_line_is_found():
    assert slope([0, 10, 20], [5.0, 7.0, 9.0]) == pytest.approx(0.2)


def test_growth_leaves_the_warm_up_out():
    """Doubles while it warms up, then takes 1 byte more each job: half a percent in 500 jobs."""
    sampled = (50_000, 100_000, *(100_000 + LOT * n for n in range(50)))
    growth = growth_of(sampled, 2 * LOT, 500)
    assert growth.start_bytes == 100_000
    assert growth.percent == pytest.approx(100 * PER_JOBS / 100_000)


def test_levels_apart_are_the_most_that_any_value_differs():
    assert levels_apart(bytes([0, 255, 7]), bytes([3, 255, 5])) == 3
    assert levels_apart(bytes([0]), bytes([255])) == 255


class TestWorkload:
    def test_same_seed_gives_the_same_jobs_and_another_others(self):
        assert mixed_jobs(30) == mixed_jobs(30)
        assert mixed_jobs(30) != mixed_jobs(30, seed=1)

    def test_jobs_are_mixed_in_all_that_they_may_differ_in(self):
        jobs = mixed_jobs(200)
        counts = [sum(job.model == model for job in jobs) for model in MODELS]
        assert max(counts) - min(counts) <= 1
        assert {(job.width, job.height) for job in jobs} == {*SIZES}
        assert {job.num_inference_steps for job in jobs} == {*STEPS}
        assert len({job.prompt for job in jobs}) > 100
        assert len({job.seed for job in jobs}) > 190

    def test_jobs_of_one_size_differ_in_prompt_and_seed_only(self):
        jobs = same_size_jobs("sdxl-tiny", 8)
        first, *others = [replace(job, prompt="", seed=0) for job in jobs]
        assert others == [first] * 7
        assert len({job.seed for job in jobs}) == 8

    @pytest.mark.parametrize("model", MODELS)
    def test_payload_is_what_the_pipeline_is_called_with_and_a_request_says_the_same(self, model):
        (job,) = same_size_jobs(model, 1)
        payload, request = job.payload(), job.request()
        assert payload == {**job.arguments(), "model": model, "seed": job.seed}
        for name in job.arguments():
            assert getattr(request, name) == payload[name]
        assert request.seeds == (job.seed,)


class TestPlan:
    def test_each_job_is_drawn_in_one_round(self):
        jobs = list(range(PLAN.jobs))
        assert [job for n in range(PLAN.rounds) for job in PLAN.slice_of(jobs, n)] == jobs

    def test_plain_and_ours_are_compared_at_equal_concurrency(self):
        pairs = {(pair.above, pair.below) for pair in PLAN.pairs()}
        for held in (1, 9):
            assert (Side(who=ON, held=held), Side(who=PLAIN, held=held)) in pairs

    def test_fetch_ahead_and_batching_are_each_told_by_itself(self):
        pairs = {(pair.above, pair.below) for pair in PLAN.pairs()}
        assert (Side(who=OFF, held=9), Side(who=OFF, held=1)) in pairs
        assert (Side(who=ON, held=9), Side(who=OFF, held=9)) in pairs

    def test_rehearsal_compares_only_what_it_runs(self):
        plan = replace(PLAN, is_whole=False)
        assert [side.who for side in plan.sides()] == [PLAIN, ON]
        assert [(pair.above.who, pair.below.who) for pair in plan.pairs()] == [(ON, PLAIN)]


class TestCost:
    def test_bill_is_split_into_what_it_was_for(self):
        found = compare("a burst", [2_000.0, 6_000.0], [LIFE], is_active=False)
        assert (found.jobs, found.shares_s, found.billed_s) == (2, 8.0, 20)
        assert (found.share_of_run, found.share_of_bill) == (0.8, 0.4)
        assert found.is_covered
        assert found.usd.jobs_share == pytest.approx(0.4)

    def test_more_than_the_worker_ran_is_seen(self):
        found = compare("a burst", [6_000.0, 6_000.0], [LIFE], is_active=False)
        assert not found.is_covered
        (verdict,) = Results(cost=found).verdicts()
        assert not verdict.is_met
        assert "MISSED" in format_verdicts([verdict])

    def test_workers_that_are_always_there_have_a_price_of_their_own(self):
        flex, active = (compare("", [1.0], [LIFE], is_active=each).usd for each in (False, True))
        assert active.bill_usd < flex.bill_usd

    def test_table_has_a_line_for_each_side(self):
        found = compare("a burst", [2_000.0], [LIFE], is_active=False)
        lines = format_costs([found, replace(found, side="another")]).splitlines()
        assert lines[-2].startswith("a burst ")
        assert lines[-1].startswith("another ")


@pytest.mark.parametrize(
    ("value", "at_least", "is_met"),
    [(1.9, True, True), (1.7, True, False), (1.7, False, True), (1.9, False, False)],
)
def test_target_is_met_on_its_good_side_only(value, at_least, is_met):
    verdict = Verdict(target="", subject="", value=value, limit=1.8, at_least=at_least)
    assert verdict.is_met is is_met
