"""scripts/plan: models on a GPU, as a table, a chart and JSON."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pixpod_tools.plan.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def plan(capsys):
    """Exit status, table, the JSON of the last line, and what was complained of."""

    def run(*arguments):
        status = main(list(arguments))
        out, err = capsys.readouterr()
        table, _, last = out.rstrip("\n").rpartition("\n")
        return status, table, json.loads(last) if last else None, err

    return run


def test_24_gb_offload_between_stages(plan):
    status, table, found, err = plan("--models", "flux-dev=float8_dynamic,sdxl", "--gpu", "4090")
    assert (status, err) == (0, "")
    assert found["gpu"] == "RTX 4090"
    assert found["usable_gib"] == 23.0
    assert found["offloaded_gib"] == {"flux-dev/text_encoder_2": 4.57, "sdxl/text_encoder_2": 1.29}
    assert found["max_batch_size"] == {"flux-dev in float8_dynamic": 2, "sdxl in float16": 2}
    row = next(line for line in table.splitlines() if line.startswith("flux-dev/text_encoder_2"))
    assert row.split()[1] == "4.57"
    assert row.endswith("offloaded to host memory, onloads in 0.25 s")


@pytest.mark.parametrize(
    ("gpu", "precision", "t5_gib"),
    [
        pytest.param("L40S", "float8_dynamic", 8.87, id="FP8"),
        pytest.param("A100", "bfloat16", 8.87, id="no FP8"),
        pytest.param("RTX 4090", "float8_dynamic", 4.57, id="small"),
    ],
)
def test_precision_is_what_a_worker_would_choose(plan, gpu, precision, t5_gib):
    _, _, found, _ = plan("--models", "flux-dev", "--gpu", gpu)
    there = found["resident_gib"]
    assert f"flux-dev/transformer in {precision}" in there
    assert there["flux-dev/text_encoder_2"] == t5_gib


@pytest.mark.parametrize(
    ("gpu", "model", "offloaded"),
    [
        ("4090", "sd35-large", {}),
        ("A4000", "sd35-medium", {}),
        ("A4000", "sd35-large", {"text_encoder_3": 4.57, "transformer in int8_dynamic": 7.72}),
    ],
)
def test_small_gpus_hold_t5_of_sd35_in_8_bits_and_offload_it(plan, gpu, model, offloaded):
    status, _, found, _ = plan("--models", model, "--gpu", gpu)
    named = {f"{model}/{name}": gib for name, gib in offloaded.items()}
    assert (status, found["offloaded_gib"]) == (0, named)
    everything = {**found["resident_gib"], **found["offloaded_gib"]}
    assert everything[f"{model}/text_encoder_3"] == 4.57


def test_files_of_a_weights_directory_count(plan):
    _, table, found, _ = plan("--weights", str(ROOT / "model_cache"), "--memory-gib", "24")
    assert {name.partition("/")[0] for name in found["resident_gib"]} == {
        "flux-tiny",
        "flux-kontext-tiny",
        "sd35-tiny",
        "sdxl-tiny",
        "sd15-tiny",
    }
    assert sum(found["resident_gib"].values()) < 0.1
    assert found["left_gib"] > 22.9
    rows = [line for line in table.splitlines() if "-tiny/vae" in line]
    named = [row.split()[0] for row in rows]
    assert named == ["flux-tiny/vae", "sdxl-tiny/vae"], "that of the UNets is shared"


def test_only_a_part_of_a_gpu_may_be_used(plan):
    _, _, found, _ = plan("--models", "sdxl", "--gpu", "H100", "--memory-gib", "12")
    assert (found["gpu"], found["usable_gib"]) == ("H100", 12.0)


def test_what_does_not_fit_is_refused_with_what_would(plan):
    status, table, found, err = plan("--models", "sdxl,flux-dev=bfloat16", "--gpu", "RTX 4090")
    assert (status, table, found) == (1, "", None)
    assert err.startswith("scripts/plan: model_unavailable: flux-dev in bfloat16 needs 23.87 GiB")
    assert "run it in 8 bits, which takes 12.8 GiB" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--models", "flux", "--gpu", "H100"], "got 'flux'", id="model"),
        pytest.param(["--models", "sdxl=fp4", "--gpu", "H100"], "int8_dynamic", id="precision"),
        pytest.param(["--models", "sdxl", "--gpu", "H900"], "RTX 4090", id="gpu"),
        pytest.param(
            ["--models", "sdxl", "--gpu", "H100", "--weights", str(ROOT / "model_cache")],
            "sdxl is not in ",
            id="not baked",
        ),
        pytest.param(
            ["--weights", str(ROOT / "docs"), "--gpu", "H100"], "manifest.toml", id="no manifest"
        ),
    ],
)
def test_what_is_not_known_is_named_with_what_is(plan, arguments, words):
    status, _, _, err = plan(*arguments)
    assert status == 1
    assert words in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--models", "sdxl"],
        ["--gpu", "H100"],
        ["--models", "sdxl", "--memory-gib", "0"],
        ["--models", "sdxl", "--memory-gib", "24", "--out", "plan.txt"],
        ["--models", ",", "--memory-gib", "24"],
    ],
    ids=["no gpu", "no models", "no memory", "no format", "no names"],
)
def test_wrong_arguments_are_refused_with_what_is_accepted(plan, arguments, capsys):
    with pytest.raises(SystemExit):
        plan(*arguments)
    assert "error: " in capsys.readouterr().err


@pytest.fixture
def nets(tmp_path):
    path = tmp_path / "nets.toml"
    entry = """
[extras.{name}]
kind = "controlnet"
family = "sdxl"
models = ["sdxl"]
types = ["{name}"]
licence = "MIT"
gib_16 = 2.33
"""
    path.write_text("".join(entry.format(name=name) for name in ("canny", "depth")))
    return "--models", "sdxl", "--catalog", str(path), "--extras", "canny,depth"


def test_stacks_are_planned_and_other_extras_come_on_demand(plan, nets):
    _, table, found, _ = plan(*nets, "--stacks", "studio", "--memory-gib", "11")
    assert found["stacks_gib"] == {"sdxl+canny+loras": 9.48}
    assert "extras/canny in float16" in {**found["resident_gib"], **found["offloaded_gib"]}
    rows = {line.split("  ")[0]: line for line in table.splitlines()}
    assert rows["extras/depth in float16"].endswith("when jobs name it, and the first to go")
    assert rows["sdxl+canny+loras"].split()[1:4] == ["denoise", "9.48", "GiB"]
    assert rows["(sdxl+depth)"].split()[1:4] == ["denoise", "9.11", "GiB"]


def test_stack_that_does_not_fit_is_refused_as_at_boot(plan, nets):
    status, _, _, err = plan(*nets, "--stacks", "heavy", "--memory-gib", "12")
    assert status == 1
    assert "sdxl+canny+depth+loras=256 in float16 needs 12.92 GiB" in err


@pytest.fixture
def presets(tmp_path):
    def write(text):
        path = tmp_path / "presets.toml"
        path.write_text(text, encoding="utf-8")
        return "--presets", str(path), "--stacks", "portrait"

    return write


def test_own_preset_is_planned_like_a_built_in_one(plan, nets, presets):
    fields = """
[portrait]
guidance_scale = 5.0
controlnets = [{ type = "depth", image = "https://app.example/depth.png" }]
loras = [{ source = "house-style", scale = 0.7 }]
"""
    status, _, found, err = plan(*nets, *presets(fields), "--memory-gib", "11")
    assert (status, err) == (0, "")
    assert found["stacks_gib"] == {"sdxl+depth+loras": 9.48}
    status, _, _, err = plan(*nets, *presets(fields), "--memory-gib", "9.2")
    assert status == 1
    assert "sdxl+depth+loras in float16 needs 9.48 GiB" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[portrait]\nwidht = 64", "--presets: portrait: widht: expected a field of the contract"),
        ("[portrait]\nprompt = 'x'", "presets.toml': portrait: expected no prompt"),
        ("[night]\nwidth = 64", "--stacks: portrait: expected a preset or a served model"),
    ],
)
def test_presets_that_a_worker_refuses_are_refused(plan, presets, text, words):
    status, _, _, err = plan("--models", "sdxl", "--gpu", "L40S", *presets(text))
    assert status == 1
    assert words in err


def test_extras_of_a_weights_directory_are_planned(plan):
    weights = ("--weights", str(ROOT / "model_cache"), "--memory-gib", "24")
    _, table, found, _ = plan(*weights, "--stacks", "heavy", "--models", "sdxl-tiny")
    (stack,) = found["stacks_gib"]
    assert stack.startswith("sdxl-tiny+sdxl-canny-tiny+sdxl-depth-tiny")
    assert "flux-canny-tiny" not in table


def test_chart_has_a_bar_for_each_stage(plan, tmp_path):
    path = tmp_path / "plan.svg"
    models = ("--models", "flux-dev=float8_dynamic,sdxl", "--stacks", "sdxl+loras")
    plan(*models, "--gpu", "RTX 4090", "--out", str(path))
    first = path.read_text()
    ET.fromstring(first)
    for words in (
        "RTX 4090: 23.0 GiB, 2 components offloaded",
        "flux-dev: text_encode",
        "sdxl: decode",
        "sdxl+loras: denoise",
    ):
        assert f"<!-- {words} -->" in first
    plan(*models, "--gpu", "RTX 4090", "--out", str(path))
    assert path.read_text() == first
