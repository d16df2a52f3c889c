"""The cold-start benchmark, rehearsed with a tiny model: the page cache is left alone.

Each of its runs is a process that imports torch, so the whole of it belongs to acceptance.
"""

import json
from pathlib import Path

import pytest
from support.rehearsal import rehearse

from pixpod_bench.cold import __main__ as command
from pixpod_bench.cold.boots import boot_worker
from pixpod_bench.cold.runs import NotHere

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Standard output of a rehearsal, and the folders with results and with weights."""
    out, cache_dir = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("cache")
    options = ["--models", "flux-tiny", "--repeats", "1", "--warm-only"]
    return rehearse("cold_bench", *options, "--cache-dir", cache_dir, "--out", out), out, cache_dir


@pytest.fixture(scope="module")
def document(run):
    return json.loads(run[0].splitlines()[-1])


def medians(document, part, case="flux-tiny"):
    return {each["name"]: each["median_s"] for each in document[part] if each["case"] == case}


@pytest.mark.acceptance
def test_each_loader_brings_all_bytes(run, document):
    found = {timing["name"]: timing for timing in document["loaders"]}
    assert document["not_here"] == []
    assert tuple(found) == ("plain read", "ours", "from_pretrained")
    size_bytes = sum(path.stat().st_size for path in (run[2] / "tiny").rglob("*.safetensors"))
    assert {timing["size_bytes"] for timing in found.values()} == {size_bytes}


@pytest.mark.acceptance
def test_boots_are_timed_to_jobs_and_to_ready(document):
    for case in ("tiny models", "flux-tiny"):
        found = medians(document, "boots", case)
        assert 0 < found["handler.py to ready, taking jobs"] < found["handler.py to ready"]


@pytest.mark.acceptance
def test_first_images_are_timed_on_both_sides(document):
    found = medians(document, "images")
    for side in ("handler.py", "stock diffusers"):
        assert 0 < found[f"{side}, ready"] < found[f"{side}, first image"]


@pytest.mark.acceptance
def test_ratios_are_of_the_times_beside_them(document):
    found = {(each["target"], each["subject"]): each["median"] for each in document["ratios"]}
    loaders = medians(document, "loaders")
    ratio = loaders["from_pretrained"] / loaders["ours"]
    key = "from_pretrained / our loader", "flux-tiny, warm"
    assert found[key] == pytest.approx(ratio, rel=0.01)
    assert len(found) == len(document["targets"]) == 5


@pytest.mark.acceptance
def test_results_and_picture_are_written(run, document):
    assert json.loads((run[1] / "cold.json").read_text()) == document
    assert (run[1] / "cold.svg").read_text().startswith("<?xml")


def test_boots_of_another_checkout_are_compared_in_alternating_pairs(tmp_path, capsys):
    """The other checkout is this one: its ratio is near 1, and one pair is no proof."""
    options = ["--base", str(ROOT), "--pairs", "1", "--warm-only", "--out", str(tmp_path)]
    assert command.main(options) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    ratios = {each["what"]: each["ratio"] for each in found["compared"]}
    assert list(ratios) == ["boot to ready", "boot to taking jobs"]
    times = medians(found, "boots", "tiny models")
    ready = ratios["boot to ready"]
    assert ready["median"] == pytest.approx(times["this checkout"] / times["base"], rel=0.01)
    assert (ready["pairs"], ready["high"]) == (1, None)


def test_worker_that_ends_before_it_is_ready_is_reported():
    """The GPU that it shall use is missing."""
    environ = {"PIXPOD_WEIGHTS_DIR": str(ROOT / "model_cache"), "PIXPOD_DEVICE": "cuda"}
    with pytest.raises(NotHere):
        boot_worker(environ, lambda: None)


def test_folder_that_is_no_checkout_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--base", str(tmp_path)])
    assert "expected a checkout with handler.py and src/pixpod" in capsys.readouterr().err
