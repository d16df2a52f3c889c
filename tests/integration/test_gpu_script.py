"""The command for a CUDA machine, rehearsed with tiny architectures on this one."""

import json
import math
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from support.rehearsal import rehearse
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from pixpod.catalog import load_catalog
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod_bench import cli
from pixpod_bench.load import measure_load
from pixpod_bench.measure import Pace
from pixpod_bench.memory import measure_memory
from pixpod_bench.overlap import compare
from pixpod_bench.random_models import build_flux_transformer, build_random_module
from pixpod_bench.requirements import MissingPackages, find_missing, provide, read_pins
from pixpod_bench.results import Failure, Journal, OverlapRow, Row
from pixpod_bench.running import Runner
from pixpod_bench.scenarios import (
    TINY,
    LoadScenario,
    MemoryScenario,
    OverlapScenario,
    Scenario,
    Slice,
    make_slices,
)
from pixpod_bench.whole_engine import Home
from pixpod_tools.bake.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[2]
NEEDS_A_CARD = {"driver", "memory_bytes", "cuda", "cudnn"}
MAY_BE_ZERO = {"float8_layers", "spread_percent", "graphs", "late_graphs"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Standard output of one rehearsal, and the folder with its files."""
    out = tmp_path_factory.mktemp("gpu")
    slices = ["--slice", "flux", "--slice", "vae", "--warmups", "1", "--repeats", "1"]
    return rehearse("gpu", "--device", "cpu", "--tiny", "--out", out, *slices), out


@pytest.fixture(scope="module")
def report(run):
    return json.loads(run[0].splitlines()[-1])


def drawn_by(report, side):
    """Rows of FLUX in 3 steps by how it ran."""
    return {
        (row["precision"], row["mode"]): row
        for row in report["drawing"].values()
        if row["side"] == side and row["num_inference_steps"] == 3
    }


def test_tests_for_a_card_are_run_too(run, report):
    assert report["tests"]["exit_code"] == 0
    assert "passed" in report["tests"]["summary"]
    assert (run[1] / "pytest.xml").is_file()
    assert report["tests"]["summary"] in (run[1] / "pytest.txt").read_text()


def test_last_line_is_the_file(run, report):
    assert json.loads((run[1] / "gpu-bench.json").read_text()) == report
    assert (run[1] / "gpu-bench.txt").read_text() in run[0]


def test_table_has_a_line_for_each_result(run, report):
    lines = run[0].splitlines()
    for scenario in (*report["drawing"], *report["vae"]):
        assert any(line.startswith(scenario) for line in lines)


def test_machine_and_command_are_told(report):
    assert "--tiny" in report["command"]
    machine = report["machine"]
    assert {name for name, value in machine.items() if value is None} == NEEDS_A_CARD
    assert machine["torch"] == torch.__version__


def test_figures_are_finite_and_positive(report):
    assert report["failures"] == report["left_out"] == []
    assert (len(report["drawing"]), len(report["vae"])) == (6, 6)
    for row in (*report["drawing"].values(), *report["vae"].values()):
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert math.isfinite(value)
                assert value > 0 or name in MAY_BE_ZERO, name


def test_float8_rows_are_really_quantised(report):
    for row in report["drawing"].values():
        assert (row["float8_layers"] > 30) == (row["precision"] == "float8_dynamic")


def test_both_sides_are_compared_in_one_run(report):
    (ours,) = drawn_by(report, "pixpod").values()
    stock = drawn_by(report, "diffusers")
    for mode in ("eager", "compiled"):
        ratio = stock["bfloat16", mode]["total_ms"] / ours["total_ms"]
        assert ours[f"speedup_to_stock_{mode}"] == pytest.approx(ratio)
        assert stock["bfloat16", mode][f"speedup_to_stock_{mode}"] == 1


def test_phases_fit_into_the_total(report):
    for row in report["drawing"].values():
        phases = row["text_encode_ms"] + row["denoise_ms"] + row["decode_ms"]
        assert phases <= row["total_ms"] + 1
        assert row["same_pixels"]


def test_targets_are_listed_though_a_rehearsal_meets_none(run, report):
    assert {target["is_met"] for target in report["targets"]} == {None}
    assert "FLUX.1-dev, 28 steps" in run[0]


def test_later_call_measures_only_what_is_missing(run, report, capsys):
    """The slice is there but for its last result."""
    journal = run[1] / "gpu-bench.jsonl"
    *kept, _, _ = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(kept))
    arguments = ["--device", "cpu", "--tiny", "--only", "bench", "--resume", "--slice", "vae"]
    assert cli.main([*arguments, "--warmups", "1", "--repeats", "1", "--out", str(run[1])]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["drawing"] == report["drawing"]
    assert list(again["vae"]) == list(report["vae"])
    *same, last = report["vae"]
    assert all(again["vae"][name] == report["vae"][name] for name in same)
    assert again["vae"][last] != report["vae"][last]
    assert cli.main(["--only", "report", "--out", str(run[1])]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (shown["drawing"], shown["vae"]) == (again["drawing"], again["vae"])


def test_pictures_are_drawn(run):
    for name in ("gpu-times.svg",):
        assert (run[1] / name).read_text().startswith("<?xml")


def test_report_of_nothing_says_so(tmp_path, capsys):
    assert cli.main(["--only", "report", "--out", str(tmp_path)]) == 2
    assert "has no results" in capsys.readouterr().err


# --- the other slices, in this process ------------------------------------------------------------


@pytest.fixture
def runner(tmp_path):
    return Runner(
        catalog=load_catalog(),
        device=torch.device("cpu"),
        pace=Pace(warmups=1, repeats=1, deadline=None),
        journal=Journal.continued(tmp_path / "gpu.jsonl", {"device": "cpu", "torch": "2"}),
        directory=tmp_path,
        compiled_dir=tmp_path / "compiled",
    )


def one_of_each_kind() -> tuple[Scenario, ...]:
    """One for each way to draw and each model, but for what the rehearsal above has drawn."""
    found: dict[object, Scenario] = {}
    for chosen in make_slices(TINY, has_cudnn=False):
        for scenario in chosen.scenarios:
            if isinstance(scenario, Scenario) and chosen.name in ("sdxl", "flux-ablation", "unets"):
                variant = scenario.variant
                new = {(variant.side, variant.mode), variant.model} - found.keys()
                found |= dict.fromkeys(new, scenario)
    return tuple(dict.fromkeys(found.values()))


def test_every_kind_of_variant_is_drawn(runner):
    scenarios = one_of_each_kind()
    runner.run(Slice(name="kinds", scenarios=scenarios))
    results = {entry.scenario: entry.result for entry in runner.journal.entries()}
    assert list(results) == [scenario.name for scenario in scenarios]
    for name, result in results.items():
        assert isinstance(result, Row), f"{name}: {result}"


def test_scenario_that_fails_does_not_take_the_others_along(runner):
    good = next(each for each in one_of_each_kind() if each.text_tokens)
    bad = replace(good, variant=replace(good.variant, attention="no such backend"))
    runner.run(Slice(name="some", scenarios=(bad, good)))
    failed, drawn = (entry.result for entry in runner.journal.entries())
    assert isinstance(failed, Failure)
    assert "no such backend" in failed.reason
    assert isinstance(drawn, Row)


def test_nothing_is_begun_when_the_time_is_over(runner):
    runner.pace = Pace(warmups=1, repeats=1, deadline=0.0)
    scenarios = one_of_each_kind()[:2]
    runner.run(Slice(name="some", scenarios=scenarios))
    assert runner.left_out == [f"some: {scenario.name}" for scenario in scenarios]
    assert list(runner.journal.entries()) == []


def test_decoding_beside_the_next_denoising_is_measured(runner):
    runner.run(Slice(name="overlap", scenarios=(only(OverlapScenario),)))
    (entry,) = runner.journal.entries()
    row = entry.result
    assert isinstance(row, OverlapRow), row
    assert 0 < row.decode_ms < row.in_turns_ms
    assert row.gain == pytest.approx(row.in_turns_ms / row.beside_ms)


def test_one_batch_is_decoded_while_the_next_is_denoised():
    """Stages that need no device: of ten one after the other, one decoding is left at the end."""
    order: list[str] = []

    def stage(name: str) -> None:
        order.append(f"{name} in {threading.current_thread().name}")
        time.sleep(0.05)

    pace = Pace(warmups=0, repeats=1, deadline=None)
    found = compare(lambda: stage("denoise"), lambda: stage("decode"), 5, pace)
    assert found.in_turns_ms / found.beside_ms > 1.3
    main = threading.current_thread().name
    in_turns = [f"denoise in {main}", f"decode in {main}"] * 5
    assert order[:11] == [f"decode in {main}", *in_turns]
    assert sum(each == "decode in decode_0" for each in order[11:]) == 5


def test_decoding_that_fails_beside_a_denoising_is_told():
    main = threading.current_thread()

    def decode() -> None:
        if threading.current_thread() is not main:
            raise RuntimeError("CUDA error: out of resources")

    pace = Pace(warmups=0, repeats=1, deadline=None)
    with pytest.raises(RuntimeError, match="out of resources"):
        compare(lambda: None, decode, 2, pace)


@pytest.fixture
def home(tmp_path):
    """The models that ship with the source."""
    return Home(
        weights_dir=SOURCE_WEIGHTS_DIR,
        compiled_dir=tmp_path / "compiled",
        device=torch.device("cpu"),
    )


def only(kind):
    return next(
        scenario
        for chosen in make_slices(TINY, has_cudnn=False)
        for scenario in chosen.scenarios
        if isinstance(scenario, kind)
    )


def test_memory_is_measured_over_mixed_requests(home):
    scenario = only(MemoryScenario)
    sdxl = replace(scenario, precisions=scenario.precisions[1:], num_requests=3)
    row = measure_memory(sdxl, home)
    assert (row.num_requests, row.num_images) == (3, 1 + 2 + 1)
    assert row.host_peak_bytes > 2**28
    assert row.driver_bytes is None


def test_load_is_measured_with_and_without_batching(home):
    scenario = replace(only(LoadScenario), num_requests=3, loads=(2.0,))
    sdxl = replace(scenario, precisions=scenario.precisions[1:], kinds=scenario.kinds[-2:])
    row = measure_load(sdxl, home)
    assert [point.is_batching for point in row.points] == [False, True]
    assert all(point.images_per_s > 0 and point.p95_s > 0 for point in row.points)
    assert row.capacity_per_s > 0


def test_full_size_parts_have_the_published_number_of_parameters():
    """In millions, of FLUX.1-dev and SDXL 1.0."""
    found = [sum(p.numel() for p in part.parameters()) / 1e6 for part in _full_size_parts()]
    assert [round(count, 1) for count in found] == [
        *(11901.4, 4762.3, 123.1, 83.8),  # FLUX: transformer, T5, CLIP, VAE
        *(2567.5, 83.7),  # SDXL: UNet, VAE
    ]


def _full_size_parts() -> Iterator[nn.Module]:
    meta, dtype = torch.device("meta"), torch.bfloat16
    flux, sdxl = ARCHITECTURES["flux-dev"], ARCHITECTURES["sdxl"]
    assert flux.second_text_encoder is not None
    t5, clip = T5Config(**flux.second_text_encoder), CLIPTextConfig(**flux.text_encoder)
    yield build_flux_transformer(flux.denoiser, meta, dtype)
    yield build_random_module(lambda: T5EncoderModel(t5), meta, dtype)
    yield build_random_module(lambda: CLIPTextModel(clip), meta, dtype)
    yield build_random_module(lambda: AutoencoderKL(**flux.vae), meta, dtype)
    yield build_random_module(lambda: UNet2DConditionModel(**sdxl.denoiser), meta, dtype)
    yield build_random_module(lambda: AutoencoderKL(**sdxl.vae), meta, dtype)


def test_bare_machine_can_be_told_what_is_missing():
    """Before packages are installed, nothing may be imported that comes with them."""
    carried = {"pydantic", "torch", "diffusers", "tqdm", "matplotlib"}
    code = f"import sys, pixpod_bench.cli; print(sorted({carried!r} & sys.modules.keys()))"
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert finished.stdout == "[]\n", finished.stderr


def test_missing_packages_are_named_with_the_command_to_type(tmp_path):
    pins = tmp_path / "pins.txt"
    pins.write_text("# a comment\nno-such-package==1.2\ntorch==1.0.0\ndiffusers==999.0\n")
    assert find_missing(read_pins(pins)) == {"no-such-package": "1.2", "diffusers": "999.0"}
    with pytest.raises(MissingPackages, match=r"--no-deps no-such-package==1\.2"):
        provide(pins, None, tmp_path / "site")


def test_missing_packages_are_installed_from_wheels(tmp_path):
    """A wheel is a zip with metadata; nothing but `--target` is written."""
    pins = tmp_path / "pins.txt"
    pins.write_text("pixpod-bench-probe==1.2\n")
    _write_wheel(tmp_path / "wheels")
    code = (
        "import sys; from pathlib import Path; from pixpod_bench.requirements import provide; "
        "provide(*map(Path, sys.argv[1:])); import pixpod_bench_probe; print('imported')"
    )
    arguments = [pins, tmp_path / "wheels", tmp_path / "site"]
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert finished.stdout == "imported\n", finished.stderr


def _write_wheel(folder: Path) -> None:
    folder.mkdir()
    info = "pixpod_bench_probe-1.2.dist-info"
    files = {
        "pixpod_bench_probe.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: pixpod-bench-probe\nVersion: 1.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / "pixpod_bench_probe-1.2-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
