"""What is computed from results of a GPU: floors, targets, ratios, published figures, tables."""

import math
import re
from dataclasses import replace

import pytest
from support.gpu_results import LOAD, MEMORY, ROW, STACK, TESTS

from pixpod.catalog import load_catalog
from pixpod.families import Precision
from pixpod.settings import Settings
from pixpod_bench.gpu.floors import find_peak, step_work
from pixpod_bench.gpu.published import load_published, published_of
from pixpod_bench.gpu.report import Report
from pixpod_bench.gpu.results import Entry, Failure
from pixpod_bench.gpu.scenarios import PLAIN, Mode, Scenario, Side, StackScenario
from pixpod_bench.gpu.slices import FULL_SIZE, SLICES, TINY, make_slices
from pixpod_bench.gpu.targets import TARGETS, judge
from pixpod_bench.gpu.workload import AnsweredRequest, Deployment, arrivals, summarize

FLOAT8, BFLOAT16 = Precision.FLOAT8_DYNAMIC, Precision.BFLOAT16


def entries_of(*results):
    return [
        Entry(slice="some", scenario=f"scenario {number}", result=result)
        for number, result in enumerate(results)
    ]


def verdicts(*results):
    return {verdict.target: verdict for verdict in judge(entries_of(*results))}


def report_of(*results, device="NVIDIA H100 80GB HBM3", left_out=()):
    return Report(entries_of(*results), {"device": device}, left_out)


def cells(report, scenario):
    """Cells of a scenario's line by the titles above them."""
    lines = report.tables().splitlines()
    found = next(number for number, line in enumerate(lines) if line.startswith(scenario))
    top = next(n for n in range(found, 0, -1) if lines[n].startswith("---"))
    titles, rule, line = lines[top - 1], lines[top], lines[found]
    edges = [0, *(n for n in range(1, len(rule)) if rule[n] == "-" and rule[n - 1] == " ")]
    spans = zip(edges, [*edges[1:], None], strict=True)
    return {titles[a:b].strip(): line[a:b].strip() for a, b in spans}


@pytest.mark.parametrize(
    ("size_px", "tokens", "teraflop"),
    [(1024, 512, 74.385), (1024, 256, 69.467), (768, 512, 41.930), (512, 512, 21.503)],
)
def test_work_of_a_flux_step_is_as_counted(size_px, tokens, teraflop):
    work = step_work("flux-dev", size_px, tokens, samples=1)
    assert work is not None
    assert work.total == pytest.approx(teraflop, rel=1e-3)


def test_work_grows_with_the_samples():
    one, guided = step_work("sdxl", 1024, None, samples=1), step_work("sdxl", 1024, None, samples=2)
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
    peak, work = find_peak(device), step_work("flux-dev", 1024, 512, samples=1)
    assert peak is not None
    assert work is not None
    assert peak.step_ms(work, precision) == pytest.approx(milliseconds, rel=0.01)


def test_there_is_no_floor_for_what_is_not_known():
    peak, work = find_peak("NVIDIA A100-SXM4-80GB"), step_work("flux-dev", 1024, 512, samples=1)
    assert peak is not None
    assert work is not None
    assert peak.step_ms(work, FLOAT8) is None
    assert find_peak("NVIDIA GH200") is None
    assert find_peak("cpu") is None
    assert step_work("sdxl", 768, None, samples=1) is None


def test_target_is_met_by_what_is_served():
    verdict = verdicts(ROW)["FLUX.1-dev, 28 steps"]
    assert (verdict.value, verdict.is_met) == (2.5005, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"side": "diffusers"},
        {"precision": "bfloat16"},
        {"mode": "eager"},
        {"size_px": 512},
        {"batch_size": 2},
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
    slow = replace(ROW, model="sdxl", precision="float16", num_inference_steps=30, batch_size=8)
    found = verdicts(replace(slow, images_per_second=1.1))["SDXL, 30 steps, batched"]
    assert (found.value, found.is_met) == (1.1, False)
    assert (
        verdicts(replace(MEMORY, driver_bytes=40_000_000_001))[
            "FLUX in FP8 and SDXL on one GPU"
        ].is_met
        is False
    )


def test_memory_of_either_plan_is_its_own_target():
    found = verdicts(MEMORY, replace(MEMORY, limit_gib=23.5, driver_bytes=25_000_000_000))
    assert found["FLUX in FP8 and SDXL on one GPU"].value == 39.0
    assert found["the same on 24 GB"].value == 25.0


def test_stack_is_compared_with_plain_images_of_the_same_work():
    plain = replace(STACK, stack=PLAIN, seconds=2.5, swap_s=None)
    others = [replace(plain, batch_size=1), replace(plain, size_px=512)]
    report = report_of(*others, plain, STACK, replace(STACK, precision="bfloat16"))
    found = cells(report, "scenario 3")
    assert (found["to plain"], found["seconds"], found["new LoRA s"]) == ("1.40x", "3.500", "0.028")
    assert (found["peak GiB"], found["graphs"]) == ("21.00", "3+1")
    assert cells(report, "scenario 2")["new LoRA s"] == "-"
    assert cells(report, "scenario 4")["to plain"] == "-"


@pytest.mark.parametrize("scale", [FULL_SIZE, TINY], ids=["full", "tiny"])
def test_every_stack_has_plain_images_of_the_same_work(scale):
    def work(scenario):
        return scenario.variant, scenario.size_px, scenario.batch_size

    stacks = make_slices(scale)["stacks"]
    plain = {
        work(each)
        for each in stacks
        if isinstance(each, StackScenario) and each.stack.name == PLAIN
    }
    assert {work(each) for each in stacks} == plain


def test_failures_are_no_figures():
    assert {verdict.is_met for verdict in verdicts(Failure(reason="broken")).values()} == {None}


def test_full_size_slices_measure_every_target():
    """As far as drawing goes: each drawing target has a scenario that answers it."""
    answered = set()
    for scenarios in make_slices(FULL_SIZE).values():
        for scenario in scenarios:
            if isinstance(scenario, Scenario):
                variant = scenario.variant
                row = replace(
                    ROW,
                    side=variant.side,
                    model=variant.model,
                    precision=variant.precision,
                    mode=variant.mode,
                    size_px=scenario.size_px,
                    batch_size=scenario.batch_size,
                    num_inference_steps=scenario.num_inference_steps,
                    has_guidance=scenario.has_guidance,
                )
                answered |= {
                    name for name, verdict in verdicts(row).items() if verdict.value is not None
                }
    assert answered == {target.name for target in TARGETS if target.unit != "GB"}


@pytest.mark.parametrize("scale", [FULL_SIZE, TINY], ids=["full", "tiny"])
def test_scenarios_of_a_slice_have_different_names(scale):
    for name, scenarios in make_slices(scale).items():
        names = [scenario.name for scenario in scenarios]
        assert len(names) == len(set(names)), name


@pytest.mark.parametrize("scale", [FULL_SIZE, TINY], ids=["full", "tiny"])
def test_scenarios_are_what_the_catalog_serves(scale):
    catalog = load_catalog()
    for scenarios in make_slices(scale).values():
        for scenario in scenarios:
            if isinstance(scenario, Scenario | StackScenario):
                limits = catalog[scenario.variant.model].limits
                assert limits.min_side_px <= scenario.size_px <= limits.max_side_px
                assert scenario.num_inference_steps <= limits.max_steps
                assert (scenario.text_tokens or 0) <= (limits.max_sequence_length or 0)


def test_rehearsal_has_the_slices_of_the_gpu():
    for scale in (FULL_SIZE, TINY):
        assert list(make_slices(scale)) == list(SLICES)


@pytest.mark.parametrize("scale", [FULL_SIZE, TINY], ids=["full", "tiny"])
def test_every_slice_of_images_has_diffusers_for_the_same_work(scale):
    for name, scenarios in make_slices(scale).items():
        works = [
            {
                (s.variant.model, s.size_px, s.batch_size, s.num_inference_steps, s.text_tokens)
                for s in scenarios
                if isinstance(s, Scenario) and s.variant.side == side
            }
            for side in Side
        ]
        assert works[1] <= works[0], name
        if name not in ("memory", "load", "stacks"):
            assert works[1], name


def test_arrivals_are_the_same_each_time_at_the_requested_rate():
    times = arrivals(2.0, 4000)
    assert times == arrivals(2.0, 4000)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(2000, rel=0.05)


def test_load_is_measured_from_arrival_to_images():
    served = [
        AnsweredRequest(arrived_s=1.0, done_s=3.0, device_s=1.0, num_images=2),
        AnsweredRequest(arrived_s=2.0, done_s=5.0, device_s=1.0, num_images=1),
    ]
    point = summarize(served, is_batching=True, load=0.8)
    assert (point.p50_s, point.p95_s, point.p99_s) == (2.0, 3.0, 3.0)
    assert point.requests_per_s == 0.5
    assert point.images_per_s == 0.75
    assert math.isclose(point.busy_percent, 50.0)


class TestReport:
    STOCK = replace(
        ROW,
        side="diffusers",
        precision="bfloat16",
        mode="eager",
        total_ms=6_576.0,
        floor_percent=9.0,
    )
    COMPILED = replace(STOCK, mode="compiled", total_ms=4_200.84)

    def test_each_figure_is_in_its_own_column(self):
        """Every figure of the row is another one."""
        found = cells(report_of(ROW, self.STOCK, self.COMPILED), "scenario 0")
        assert found == {
            "Images": "scenario 0",
            "to eager": "2.63x",
            "to compiled": "1.68x",
            "total ms": "2500.5",
            "spread": "3.5 %",
            "p95 ms": "2612.2",
            "text ms": "21.5",
            "step ms": "85.2",
            "decode ms": "61.8",
            "images/s": "0.401",
            "peak GiB": "26.00",
            "TFLOP/s": "872",
            "of floor": "57 %",
            "first s": "41.5",
            "graphs": "2+7",
            "$/1,000": "2.901",
            "published s": "2.97 H100",
        }

    def test_memory_is_beside_that_of_stock_pipelines(self):
        found = cells(report_of(MEMORY), "scenario 0")
        assert found == {
            "Memory": "scenario 0",
            "stock / ours": "1.50x",
            "stock GiB": "45.00",
            "allocated GiB": "30.00",
            "reserved GiB": "33.00",
            "driver GiB": "36.32",
            "at end GiB": "32.00",
            "host GiB": "12.00",
            "onloads": "17",
            "onload s": "2.3",
            "requests": "200",
            "seconds": "61.5",
        }

    def test_load_is_beside_the_capacity_of_stock_pipelines(self):
        found = cells(report_of(LOAD), "scenario 0, 0.8 of capacity, batching on")
        assert list(found.values())[1:] == [
            *("1.20x", "1.250", "1.600", "1.500", "1.750", "0.61", "2.42", "3.23", "81 %"),
        ]

    def test_other_work_is_not_compared(self):
        for changes in ({"batch_size": 4}, {"has_guidance": False}, {"text_tokens": 256}):
            report = report_of(ROW, replace(self.STOCK, **changes))
            assert report.speedup(ROW, Mode.EAGER) is None

    def test_failures_tests_and_what_was_left_out_are_listed(self):
        failure = Failure(reason="RuntimeError: broken")
        text = report_of(failure, TESTS, left_out=["unets: some"]).tables()
        for each in ("RuntimeError: broken", TESTS.summary, "unets: some"):
            assert each in text

    @pytest.mark.parametrize(
        ("results", "has_failed"),
        [
            ((ROW, TESTS), False),
            ((ROW, Failure(reason="broken")), True),
            ((ROW, replace(TESTS, exit_code=1)), True),
        ],
    )
    def test_failure_of_a_scenario_or_a_test_fails_the_run(self, results, has_failed):
        assert report_of(*results).has_failed is has_failed

    def test_document_has_ratios_price_and_all_published_figures(self):
        document = report_of(ROW, self.STOCK, MEMORY).document("scripts/gpu")
        row = document["images"]["scenario 0"]
        assert row["speedup_to_stock_eager"] == pytest.approx(6_576.0 / 2_500.5)
        assert row["speedup_to_stock_compiled"] is None
        assert row["peak_bytes"] == ROW.peak_bytes
        assert {each["card"] for each in row["published"]} >= {"H100", "A100", "H200", "RTX 4090"}
        assert document["memory"]["scenario 2"]["stock_ratio"] == 1.5

    def test_unknown_gpu_has_no_price(self):
        assert report_of(ROW, device="cpu").usd_per_1000(ROW) is None

    def test_picture_has_published_figures_but_no_doubtful_ones(self, tmp_path):
        doubted = replace(ROW, num_inference_steps=30)
        stock = replace(self.STOCK, num_inference_steps=30)
        report_of(ROW, self.STOCK, doubted, stock).draw(tmp_path / "gpu.svg")
        picture = (tmp_path / "gpu.svg").read_text()
        assert "published, H100" in picture
        assert picture.count("published, RTX 4090") == 1


class TestPublished:
    @pytest.mark.parametrize(
        ("device", "first"),
        [
            ("NVIDIA GeForce RTX 4090", "RTX 4090"),
            ("NVIDIA A100-SXM4-80GB", "A100"),
            ("NVIDIA RTX 6000 Ada Generation", "6000 Ada"),
            ("NVIDIA H200", "H200"),
            ("NVIDIA GH200 480GB", "RTX 4090"),
            ("NVIDIA RTX 5090", "RTX 4090"),
        ],
    )
    def test_figures_of_the_same_gpu_come_first(self, device, first):
        assert published_of(ROW, device)[0].card == first

    def test_guided_and_unguided_work_are_not_compared(self):
        few = replace(ROW, model="sdxl", num_inference_steps=4, has_guidance=False)
        found = published_of(few, "NVIDIA H100")
        assert [each.seconds for each in found if each.card == "H100"] == [0.234]
        assert published_of(replace(few, has_guidance=True), "NVIDIA H100") == []

    def test_doubt_is_marked_in_the_table_and_explained(self):
        report = report_of(replace(ROW, num_inference_steps=30), device="NVIDIA RTX 4090")
        assert cells(report, "scenario 0")["published s"] == "4.10 RTX 4090?"
        assert "330 in FP8 at best" in report.tables()

    def test_every_figure_has_a_source_and_a_date(self):
        for figure in load_published():
            assert figure.seconds > 0
            assert figure.source
            assert re.fullmatch(r"20\d\d(-\d\d){0,2}", figure.date)


def test_deployment_is_read_by_the_products_own_settings(tmp_path):
    """Of published weights every licence must be accepted, or FLUX is not served."""
    deployment = Deployment(
        weights_dir=tmp_path,
        compiled_dir=tmp_path / "compiled",
        device="cpu",
        served=(("flux-dev", FLOAT8), ("sdxl", Precision.FLOAT16)),
        sizes_px=(1024, 512),
        is_batching=False,
        limit_gib=23.5,
    )
    settings = Settings.from_env(deployment.environ())
    needed = {s.licence for s in load_catalog().values() if s.licence_must_be_accepted}
    assert settings.accepted_licences == needed != set()
    assert settings.models == ("flux-dev", "sdxl")
    assert settings.requested_precision("flux-dev") is FLOAT8
    assert settings.warmup_sizes == ((1024, 1024), (512, 512))
    assert (settings.is_batching, settings.memory_limit_gb) == (False, 23.5)
