"""The command for a CUDA machine, rehearsed with tiny architectures on this one."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from support.rehearsal import rehearse

from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.testing.random_models import build_random_component
from pixpod_bench.gpu import __main__ as command
from pixpod_bench.gpu import random_extras
from pixpod_bench.gpu.engine import measure_load, measure_memory
from pixpod_bench.gpu.results import Failure, Journal, Row, StackRow
from pixpod_bench.gpu.runner import Runner
from pixpod_bench.gpu.scenarios import LoadScenario, MemoryScenario, Mode, Scenario, StackScenario
from pixpod_bench.gpu.slices import TINY, make_slices
from pixpod_bench.gpu.workload import Deployment
from pixpod_bench.machine import Deadline
from pixpod_tools.bake.architectures import get_architecture
from pixpod_tools.bake.character_tokenizers import clip_tokenizer

MAY_BE_ZERO = {"float8_layers", "spread_percent", "graphs", "late_graphs"}
QUICK = ("--device", "cpu", "--tiny", "--warmups", "1", "--repeats", "1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Standard output of one rehearsal, the folder with its results and its state."""
    out, state = tmp_path_factory.mktemp("gpu"), tmp_path_factory.mktemp("state")
    options = [*QUICK, "--slice", "tests", "--slice", "flux", "--out", out, "--state", state]
    return rehearse("gpu", *options), out, state


@pytest.fixture(scope="module")
def report(run):
    return json.loads(run[0].splitlines()[-1])


def rows_of(report, side):
    """Rows of FLUX in 3 steps by precision and mode."""
    return {
        (row["precision"], row["mode"]): row
        for row in report["images"].values()
        if row["side"] == side and row["num_inference_steps"] == 3
    }


def test_tests_for_a_gpu_are_run_too(run, report):
    assert report["tests"]["exit_code"] == 0
    assert "passed" in report["tests"]["summary"]
    assert report["tests"]["summary"] in (run[1] / "pytest.txt").read_text()
    assert (run[1] / "pytest.xml").is_file()


def test_results_are_printed_and_written(run, report):
    stdout, out, state = run
    assert json.loads((out / "gpu.json").read_text()) == report
    assert (out / "gpu.txt").read_text() in stdout
    assert (out / "gpu.jsonl").read_text() == (state / "gpu.jsonl").read_text()
    assert (out / "gpu.svg").read_text().startswith("<?xml")
    for scenario in report["images"]:
        assert any(line.startswith(scenario) for line in stdout.splitlines())


def test_machine_and_command_are_named(report):
    assert "--tiny" in report["command"]
    assert report["machine"]["device"] == "cpu"
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["date"].startswith("20")


def test_figures_are_finite_and_positive(report):
    assert report["failures"] == report["left_out"] == []
    assert len(report["images"]) == 6
    for row in report["images"].values():
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert math.isfinite(value)
                assert value > 0 or name in MAY_BE_ZERO, name
        assert row["text_encode_ms"] + row["denoise_ms"] + row["decode_ms"] <= row["total_ms"] + 1
        assert row["same_pixels"]
        assert (row["float8_layers"] > 30) == (row["precision"] == "float8_dynamic")


def test_both_sides_are_compared_in_one_run(report):
    (ours,) = rows_of(report, "pixpod").values()
    stock = rows_of(report, "diffusers")
    for mode in ("eager", "compiled"):
        ratio = stock["bfloat16", mode]["total_ms"] / ours["total_ms"]
        assert ours[f"speedup_to_stock_{mode}"] == pytest.approx(ratio)
        assert stock["bfloat16", mode][f"speedup_to_stock_{mode}"] == 1


def test_later_call_measures_only_what_is_missing(run, report, tmp_path, capsys):
    """The journal lacks its last result; the tests are not run again."""
    state = tmp_path / "state"
    shutil.copytree(run[2], state)
    *kept, _, _ = (state / "gpu.jsonl").read_text().splitlines(keepends=True)
    (state / "gpu.jsonl").write_text("".join(kept))
    options = ["--slice", "tests", "--slice", "flux", "--out", str(tmp_path / "out")]
    assert command.main([*QUICK, *options, "--resume", "--state", str(state)]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    *same, last = report["images"]
    assert list(again["images"]) == [*same, last]
    assert all(
        again["images"][name]["total_ms"] == report["images"][name]["total_ms"] for name in same
    )
    assert again["images"][last]["total_ms"] != report["images"][last]["total_ms"]
    assert again["tests"] == report["tests"]
    assert not (tmp_path / "out" / "pytest.txt").exists()


def test_report_of_nothing_says_so(tmp_path, capsys):
    options = ["--report", "--state", str(tmp_path), "--out", str(tmp_path)]
    assert command.main(options) == command.NOT_BEGUN
    assert f"expected results in {tmp_path / 'gpu.jsonl'}, got none" in capsys.readouterr().err


# --- the other slices, in this process ------------------------------------------------------------


@pytest.fixture
def runner(tmp_path):
    return Runner(
        device=torch.device("cpu"),
        warmups=1,
        repeats=1,
        deadline=Deadline(),
        journal=Journal.continued(tmp_path / "gpu.jsonl", {"device": "cpu", "torch": "2"}),
        state=tmp_path,
    )


def one_of_each_kind() -> tuple[Scenario, ...]:
    """One for each side, mode and model, but for FLUX, which the rehearsal above has measured."""
    found: dict[object, Scenario] = {}
    for name in ("sdxl", "unets"):
        for scenario in make_slices(TINY)[name]:
            assert isinstance(scenario, Scenario)
            variant = scenario.variant
            new = {(variant.side, variant.mode), variant.model} - found.keys()
            found |= dict.fromkeys(new, scenario)
    return tuple(dict.fromkeys(found.values()))


def test_every_kind_of_variant_generates(runner):
    scenarios = one_of_each_kind()
    assert {scenario.variant.mode for scenario in scenarios} == {*Mode}
    runner.run("kinds", scenarios)
    results = {entry.scenario: entry.result for entry in runner.journal.entries()}
    assert list(results) == [scenario.name for scenario in scenarios]
    for name, result in results.items():
        assert isinstance(result, Row), f"{name}: {result}"


def test_scenario_that_fails_does_not_take_the_others_along(runner):
    good = one_of_each_kind()[0]
    runner.run("some", (replace(good, size_px=7), good))
    failed, measured = (entry.result for entry in runner.journal.entries())
    assert isinstance(failed, Failure)
    assert isinstance(measured, Row)


def test_nothing_is_begun_when_the_time_is_over(runner):
    runner.deadline = Deadline(minutes=0)
    scenarios = one_of_each_kind()[:2]
    runner.run("some", scenarios)
    assert runner.left_out == [f"some: {scenario.name}" for scenario in scenarios]
    assert list(runner.journal.entries()) == []


def test_stacks_are_measured(runner):
    """LoRAs, nets and a given image, in rows that share a batch and one by one."""
    scenarios = [
        replace(scenario, num_inference_steps=2)
        for scenario in make_slices(TINY)["stacks"]
        if isinstance(scenario, StackScenario)
        if scenario.variant.model == "flux-tiny"
        or scenario.batch_size == 4
        or scenario.stack.refiner_steps
        or scenario.stack.num_images
    ]
    runner.run("stacks", scenarios)
    results = {entry.scenario: entry.result for entry in runner.journal.entries()}
    assert list(results) == [scenario.name for scenario in scenarios]
    for name, row in results.items():
        assert isinstance(row, StackRow), f"{name}: {row}"
        assert row.seconds > 0
        assert (row.swap_s is None) == ("LoRA" not in row.stack)


def only(name, kind):
    scenario = make_slices(TINY)[name][0]
    assert isinstance(scenario, kind)
    return replace(scenario, served=scenario.served[1:])


@pytest.fixture
def deployment(tmp_path):
    """SDXL of the models that ship with the source."""
    return Deployment(
        weights_dir=SOURCE_WEIGHTS_DIR,
        compiled_dir=tmp_path / "compiled",
        device="cpu",
        served=only("memory", MemoryScenario).served,
    )


def test_memory_is_measured_over_mixed_requests(deployment):
    row = measure_memory(replace(only("memory", MemoryScenario), num_requests=3), deployment)
    assert (row.num_requests, row.num_images) == (3, 1 + 2 + 1)
    assert row.host_peak_bytes > 2**28
    assert row.driver_bytes is None


def test_load_is_measured_with_and_without_batching_and_beside_stock(deployment):
    scenario = only("load", LoadScenario)
    scenario = replace(scenario, num_requests=3, loads=(2.0,), kinds=scenario.kinds[-2:])
    row = measure_load(scenario, deployment)
    assert [point.is_batching for point in row.points] == [False, True]
    assert all(point.images_per_s > 0 and point.p95_s > 0 for point in row.points)
    assert row.capacity_per_s > 0
    assert row.stock_capacity_per_s > 0


@pytest.mark.parametrize(
    ("model", "component", "millions"),
    [
        ("flux-dev", "text_encoder", 123.1),
        ("flux-dev", "text_encoder_2", 4762.3),
        ("flux-dev", "transformer", 11901.4),
        ("flux-dev", "vae", 83.8),
        ("flux2-klein", "text_encoder", 4022.5),
        ("flux2-klein", "transformer", 3875.5),
        ("z-image-turbo", "transformer", 6154.9),
        ("sdxl", "unet", 2567.5),
        ("sdxl", "vae", 83.7),
    ],
)
def test_full_size_components_have_the_published_number_of_parameters(model, component, millions):
    architecture = get_architecture(model)
    module = build_random_component(
        architecture.family.component(component),
        architecture.components[component],
        clip_tokenizer(),
        torch.device("meta"),
        torch.bfloat16,
    )
    assert round(sum(each.numel() for each in module.parameters()) / 1e6, 1) == millions


def test_full_size_extras_have_the_published_number_of_parameters():
    """In millions: the files of h94/IP-Adapter and of the repositories of Redux and the refiner."""
    sdxl, sd15 = (get_architecture(name).components for name in ("sdxl", "sd15"))
    text = SimpleNamespace(**sdxl["text_encoder_2"])
    flux = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=4096))
    with torch.device("meta"):
        unet, old_unet = (UNet2DConditionModel(**each["unet"]) for each in (sdxl, sd15))
        found = (
            random_extras._ip_adapter(unet, is_small=False),
            random_extras._ip_adapter(old_unet, is_small=False),
            random_extras._vit_h(is_small=False),
            random_extras._redux(flux, 384, 14, is_small=False),
            UNet2DConditionModel.from_config(random_extras.refiner_config(unet.config, text)),
        )
    millions = [sum(each.numel() for each in module.parameters()) / 1e6 for module in found]
    assert [round(each, 1) for each in millions] == [423.7, 49.1, 632.1, 492.7, 2259.5]
