"""The cold-start benchmarks, rehearsed with a tiny model: the page cache is left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pixpod_bench.cold.boots import boot_to_job_take
from pixpod_bench.cold.gpu import GpuColdBench
from pixpod_bench.cold.runs import NotHere

ROOT = Path(__file__).parents[2]
LOADERS = ("plain read", "ours")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cold")


@pytest.fixture(scope="module", autouse=True)
def one_core():
    """The processes that are measured shall leave room to other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def loaders_run(cache_dir):
    """Standard output of loaders alone, and the folder with the results."""
    out = cache_dir / "out"
    arguments = ["--only", "loaders", "--loaders", ";".join(LOADERS), "--sizes-gb", "0"]
    arguments += ["--repetitions", "1", "--warm-only", "--assert-targets"]
    done = subprocess.run(
        [ROOT / "scripts" / "cold_bench", *arguments, "--cache-dir", cache_dir, "--out", out],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, out


@pytest.fixture(scope="module")
def document(loaders_run):
    return json.loads(loaders_run[0].stdout.splitlines()[-1])


def test_each_loader_brings_all_bytes(document, cache_dir):
    found = {timing["name"]: timing for timing in document["loaders"]}
    assert document["not_here"] == []
    assert tuple(found) == LOADERS
    size_bytes = sum(path.stat().st_size for path in (cache_dir / "tiny").rglob("*.safetensors"))
    for timing in found.values():
        assert timing["size_bytes"] == size_bytes
        assert timing["median_s"] > 0


def test_last_line_is_the_file_and_the_chart_is_there(loaders_run, document):
    _, out = loaders_run
    assert json.loads((out / "cold-bench.json").read_text()) == document
    assert (out / "loaders.svg").read_text().startswith("<?xml")


def test_ratios_are_printed_beside_their_targets_and_decide_the_exit(loaders_run, document):
    """A tiny model is read sooner than it is bound, so this target cannot be met."""
    done, _ = loaders_run
    (target,) = document["targets"]
    assert target["limit"] == 0.85
    assert not target["is_met"]
    assert "MISSED" in done.stdout
    assert done.returncode == 1, done.stderr


def test_worker_asks_for_its_first_job():
    settings = {"PIXPOD_WEIGHTS_DIR": str(ROOT / "model_cache"), "PIXPOD_DEVICE": "cpu"}
    prepared = []
    sample = boot_to_job_take(settings, lambda: prepared.append(1))
    assert prepared == [1]
    assert sample.seconds > 0


def test_worker_that_ends_before_it_asks_is_said():
    """The card that it shall use is not there."""
    settings = {"PIXPOD_WEIGHTS_DIR": str(ROOT / "model_cache"), "PIXPOD_DEVICE": "cuda"}
    with pytest.raises(NotHere):
        boot_to_job_take(settings, lambda: None)


def test_first_images_are_timed_on_both_sides(cache_dir, tmp_path, capsys):
    """The way of `scripts/gpu --only cold`, on a CPU."""
    bench = GpuColdBench(
        device="cpu",
        models=("flux-tiny",),
        repetitions=1,
        deadline=None,
        out=tmp_path,
        cache_dir=cache_dir,
        command="rehearsal",
        machine={},
        loaders=("plain read",),
    )
    assert bench.run() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["not_here"] == []
    medians = {timing["name"]: timing["median_s"] for timing in found["flux-tiny first image"]}
    for side in ("ours", "stock diffusers"):
        assert 0 < medians[f"{side}, ready"] < medians[f"{side}, first image"]
    assert json.loads((tmp_path / "gpu-cold.json").read_text()) == found
    assert (tmp_path / "boot-flux-tiny-warm.svg").read_text().startswith("<?xml")
