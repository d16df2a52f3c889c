"""The throughput benchmark, rehearsed: its figures mean nothing, both sides draw the same."""

import json
from pathlib import Path

import pytest
from support.rehearsal import rehearse

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """Standard output, and the folder with the results."""
    out = tmp_path_factory.mktemp("throughput")
    parts = ("overhead", "other_steps", "mixed")
    chosen = (word for part in parts for word in ("--only", part))
    return rehearse("throughput_bench", "--quick", *chosen, "--out", out), out


@pytest.fixture(scope="module")
def document(rehearsal):
    return json.loads(rehearsal[0].splitlines()[-1])


def test_handler_and_bare_pipeline_draw_the_same_image(document):
    (overhead,) = document["overhead"]
    assert overhead["levels_apart"] <= 1
    assert overhead["bare_ms"] > 0
    assert overhead["phases_ms"]["denoise"] < overhead["handler_ms"]


def test_ratio_is_of_the_rates_beside_it(document):
    found = document["other_steps"]
    rates = found["all_the_same_images_per_s"], found["as_asked_images_per_s"]
    assert found["gain"]["median"] == pytest.approx(rates[0] / rates[1])
    assert found["held"] == document["held"] > 1


def test_plain_worker_and_ours_serve_the_same_jobs_through_the_platform(document):
    plain, ours = document["mixed"]["sides"]
    assert plain["side"].startswith("plain worker")
    assert plain["jobs"] == ours["jobs"] > 0
    assert ours["levels_apart"] <= 1
    (gain,) = document["mixed"]["gains"]
    assert gain["ratio"]["median"] == pytest.approx(ours["images_per_s"] / plain["images_per_s"])


def test_shares_of_replies_are_within_the_bill(document):
    (cost,) = document["cost"]
    assert 0 < cost["shares_s"] <= cost["run_s"] < cost["billed_s"]


def test_last_line_is_the_file_and_the_chart_is_there(rehearsal, document):
    stdout, out = rehearsal
    written = json.loads((out / "throughput-bench.json").read_text())
    assert written["is_rehearsal"] is True
    assert written == document
    assert (out / "throughput.svg").read_text().startswith("<?xml")
    for title in ("(a) Handler", "(c) Mixed", "(e) Cost", "Targets"):
        assert f"\n{title}" in stdout
