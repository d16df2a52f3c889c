"""The users' benchmark, rehearsed with tiny models."""

import json
import shutil
from pathlib import Path

import pytest
from support.rehearsal import rehearse

from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod_bench.field import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Standard output of one rehearsal, and the folder with its files."""
    out = tmp_path_factory.mktemp("bench")
    options = ["--device", "cpu", "--tiny", "--models", "sd15-tiny", "--repeats", "1"]
    price = {"PIXPOD_USD_PER_GPU_SECOND": "0.001"}
    return rehearse("bench", *options, "--out", out, **price), out


@pytest.fixture(scope="module")
def document(run):
    return json.loads(run[0].splitlines()[-1])


def test_last_line_is_the_file(run, document):
    assert json.loads((run[1] / "bench.json").read_text()) == document


def test_works_are_drawn_with_the_deployments_own_weights(document):
    assert [row["work"]["batch"] for row in document["rows"]] == [1, 2]
    assert {row["weights"] for row in document["rows"]} == {"baked"}
    assert document["not_measured"] == []


def test_cost_is_the_share_of_the_device(document):
    """1 US dollar is 1,000 s at this price."""
    for row in document["rows"]:
        seconds_of_thousand = row["device_ms"] / row["work"]["batch"]
        assert row["usd_per_1000"] == pytest.approx(seconds_of_thousand * 0.001, rel=1e-3)
        assert row["device_ms"] <= row["seconds"] * 1e3


def test_table_and_pictures_are_there(run):
    assert "SD 1.5, tiny, 64 px, 4 steps, x2" in run[0]
    for name in ("bench-speed.svg", "bench-cost.svg"):
        assert (run[1] / name).read_text().startswith("<?xml")


def test_models_that_are_not_there_are_drawn_with_random_weights(tmp_path, monkeypatch, capsys):
    """Which were baked by an earlier call: as far as this test goes, those that ship."""
    monkeypatch.setenv("PIXPOD_WEIGHTS_DIR", str(tmp_path / "none"))
    shutil.copytree(SOURCE_WEIGHTS_DIR, tmp_path / "sdxl-tiny")
    options = ["--device", "cpu", "--tiny", "--models", "sdxl-tiny", "--repeats", "1"]
    assert cli.main([*options, "--cache-dir", str(tmp_path), "--out", str(tmp_path)]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert row["weights"] == "random"


def test_nothing_is_begun_when_the_time_is_over(tmp_path, capsys):
    options = ["--device", "cpu", "--tiny", "--minutes", "0.0000001"]
    assert cli.main([*options, "--out", str(tmp_path)]) == 1
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["rows"] == []
    assert {each["reason"] for each in document["not_measured"]} == {"no time was left"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "sdxl-tiny"], "--models sdxl-tiny: accepted are sd15, sdxl, flux-schnell"),
        (["--device", "cpu"], "--tiny rehearses on a CPU"),
    ],
    ids=["unknown model", "no card"],
)
def test_what_cannot_be_is_said(tmp_path, capsys, options, message):
    assert cli.main([*options, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
