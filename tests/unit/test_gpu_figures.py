"""What is computed of a card's benchmark: floors, targets, percentiles, arrivals; its tables."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gpu_results import MEMORY, ROW

from pixpod.catalog import load_catalog
from pixpod.families import Precision
from pixpod_bench.arrivals import Served, arrivals, summarize
from pixpod_bench.figures import percentile, spread_percent
from pixpod_bench.floors import find_peak, step_work
from pixpod_bench.results import Entry, Failure
from pixpod_bench.scenarios import FULL_SIZE, TINY, Scenario, make_slices
from pixpod_bench.targets import TARGETS, judge

FLOAT8, BFLOAT16 = Precision.FLOAT8_DYNAMIC, Precision.BFLOAT16


def verdicts(*results):
    entries = [
        Entry(slice="some", scenario=str(number), result=result)
        for number, result in enumerate(results)
    ]
    return {verdict.target: verdict for verdict in judge(entries)}


@pytest.mark.parametrize(
    ("size_px", "tokens", "teraflop"),
    [(1024, 512, 74.385), (1024, 256, 69.467), (768, 512, 41.930), (512, 512, 21.503)],
)
def test_work_of_a_flux_step_is_as_counted(size_px, tokens, teraflop):
    work = step_work("flux-dev", size_px, tokens, rows=1)
    assert work is not None
    assert work.total == pytest.approx(teraflop, rel=1e-3)


def test_work_grows_with_the_rows():
    one, guided = step_work("sdxl", 1024, None, rows=1), step_work("sdxl", 1024, None, rows=2)
    assert one is not None
    assert guided is not None
    assert guided.total == 2 * one.total == pytest.approx(13.522)


@pytest.mark.parametrize(
    ("device", "precision", "milliseconds"),
    [
        ("NVIDIA H100 80GB HBM3", FLOAT8, 48.9),
        ("NVIDIA H200", BFLOAT16, 94.2),
        ("NVIDIA A100-SXM4-80GB", BFLOAT16, 238.0),
        ("NVIDIA L40S", FLOAT8, 122.0),
        ("NVIDIA GeForce RTX 4090", FLOAT8, 270.0),
    ],
)
def test_floor_of_a_flux_step_is_the_published_one(device, precision, milliseconds):
    peak, work = find_peak(device), step_work("flux-dev", 1024, 512, rows=1)
    assert peak is not None
    assert work is not None
    assert peak.step_ms(work, precision) == pytest.approx(milliseconds, rel=0.01)


def test_there_is_no_floor_for_what_is_not_known():
    peak, work = find_peak("NVIDIA A100-SXM4-80GB"), step_work("flux-dev", 1024, 512, rows=1)
    assert peak is not None
    assert work is not None
    assert peak.step_ms(work, FLOAT8) is None
    assert find_peak("NVIDIA GH200") is None
    assert find_peak("cpu") is None
    assert step_work("sdxl", 768, None, rows=1) is None


def test_target_is_met_by_what_is_served():
    verdict = verdicts(ROW)["FLUX.1-dev, 28 steps"]
    assert (verdict.value, verdict.is_met) == (2.5, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"side": "diffusers"},
        {"precision": "bfloat16"},
        {"mode": "eager"},
        {"recipe": "fused QKV"},
        {"size_px": 512},
        {"batch": 2},
        {"num_inference_steps": 8},
        {"model": "flux-tiny"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_rows_are_no_answer_to_a_target(changes):
    verdict = verdicts(replace(ROW, **changes))["FLUX.1-dev, 28 steps"]
    assert (verdict.value, verdict.is_met) == (None, None)


def test_missed_targets_are_missed():
    assert verdicts(replace(ROW, total_ms=2601.0))["FLUX.1-dev, 28 steps"].is_met is False
    slow = replace(ROW, model="sdxl", precision="float16", num_inference_steps=30, batch=8)
    found = verdicts(replace(slow, images_per_second=1.1))["SDXL, 30 steps with guidance, batched"]
    assert (found.value, found.is_met) == (1.1, False)
    assert (
        verdicts(replace(MEMORY, driver_bytes=40_000_000_001))[
            "FLUX in FP8 and SDXL on one card"
        ].is_met
        is False
    )


def test_memory_of_either_plan_is_its_own_target():
    found = verdicts(MEMORY, replace(MEMORY, limit_gib=23.5, driver_bytes=25_000_000_000))
    assert found["FLUX in FP8 and SDXL on one card"].value == 39.0
    assert found["the same on a card of 24 GB"].value == 25.0


def test_failures_are_no_figures():
    assert {verdict.is_met for verdict in verdicts(Failure(reason="broken")).values()} == {None}


def test_full_size_slices_measure_every_target():
    """As far as drawing goes: each drawing target has a scenario that answers it."""
    answered = set()
    for chosen in make_slices(FULL_SIZE, has_cudnn=True):
        for scenario in chosen.scenarios:
            if isinstance(scenario, Scenario):
                variant = scenario.variant
                row = replace(
                    ROW,
                    side=variant.side,
                    model=variant.model,
                    precision=variant.precision,
                    mode=variant.mode,
                    size_px=scenario.size_px,
                    batch=scenario.batch,
                    num_inference_steps=scenario.num_inference_steps,
                    has_guidance=scenario.has_guidance,
                )
                answered |= {
                    name for name, verdict in verdicts(row).items() if verdict.value is not None
                }
    assert answered == {target.name for target in TARGETS if target.unit != "GB"}


@pytest.mark.parametrize("scale", [FULL_SIZE, TINY], ids=["full", "tiny"])
def test_scenarios_of_a_slice_are_told_apart(scale):
    for chosen in make_slices(scale, has_cudnn=True):
        names = [scenario.name for scenario in chosen.scenarios]
        assert len(names) == len(set(names)), chosen.name


@pytest.mark.parametrize("scale", [FULL_SIZE, TINY], ids=["full", "tiny"])
def test_scenarios_are_what_the_catalog_serves(scale):
    catalog = load_catalog()
    for chosen in make_slices(scale, has_cudnn=True):
        for scenario in chosen.scenarios:
            if isinstance(scenario, Scenario):
                limits = catalog[scenario.variant.model].limits
                assert limits.min_side_px <= scenario.size_px <= limits.max_side_px
                assert scenario.num_inference_steps <= limits.max_steps
                assert (scenario.text_tokens or 0) <= (limits.max_sequence_length or 0)


def test_rehearsal_has_the_slices_of_the_card():
    names = [
        [chosen.name for chosen in make_slices(scale, has_cudnn=False)]
        for scale in (FULL_SIZE, TINY)
    ]
    assert names[0] == names[1]


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_percentile_is_one_of_the_values_with_enough_below(values, percent):
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100 - 1e-9
    if percent:
        assert sum(value < found for value in values) < len(values) * percent / 100 + 1e-9


def test_percentiles_of_known_values():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, percent) for percent in (0, 50, 95, 100)] == [1.0, 3.0, 5.0, 5.0]
    assert spread_percent(values) == pytest.approx(133.33, abs=0.01)


def test_arrivals_are_the_same_each_time_at_the_rate_that_was_asked_for():
    times = arrivals(2.0, 4000)
    assert times == arrivals(2.0, 4000)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(2000, rel=0.05)


def test_load_is_told_from_arrival_to_images():
    served = [
        Served(came_s=1.0, done_s=3.0, device_s=1.0, num_images=2),
        Served(came_s=2.0, done_s=5.0, device_s=1.0, num_images=1),
    ]
    point = summarize(served, is_batching=True, load=0.8)
    assert (point.p50_s, point.p95_s, point.p99_s) == (2.0, 3.0, 3.0)
    assert point.requests_per_s == 0.5
    assert point.images_per_s == 0.75
    assert math.isclose(point.busy_percent, 50.0)
