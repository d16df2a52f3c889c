"""The load benchmark, rehearsed: its figures mean nothing, all sides generate the same images."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.rehearsal import rehearse

from pixpod_bench.load.jobs import MODELS, SIZES, STEPS, levels_apart, mixed_jobs, same_size_jobs
from pixpod_bench.load.overhead import Sample
from pixpod_bench.load.sides import SideFailed, running_side

ROOT = Path(__file__).parents[2]
PAIRED = ("--only", "overhead", "--only", "gain")
"""What is compared with the base. The rest starts three workers more."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Standard output of a rehearsal with this checkout as the base, and the results' folder."""
    out = tmp_path_factory.mktemp("load")
    options = ["--quick", "--base", ROOT, "--pairs", "2", "--models", "sd15-tiny"]
    return rehearse("load_bench", *options, *PAIRED, "--out", out), out


@pytest.fixture(scope="module")
def document(run):
    return json.loads(run[0].splitlines()[-1])


def test_handler_and_bare_pipeline_generate_the_same_image(document):
    assert [each["side"] for each in document["overhead"]] == ["base", "this checkout"]
    for each in document["overhead"]:
        assert each["levels_apart"] <= 1
        assert 0 < each["beside_stages_ms"] < each["handler_ms"]
        ratios = [sample["handler_ms"] / sample["bare_ms"] for sample in each["samples"]]
        assert each["ratio"]["median"] == pytest.approx(sum(ratios) / 2)


def test_batches_generate_the_same_images(document):
    for each in document["gain"]:
        assert each["levels_apart"] <= 1
        gains = [sample["off_s"] / sample["on_s"] for sample in each["samples"]]
        assert each["ratio"]["median"] == pytest.approx(sum(gains) / 2)


def test_ratios_to_the_base_are_of_pairs_and_worse_is_above_one(document):
    found = {each["what"]: each["ratio"]["median"] for each in document["compared"]}
    base, tree = ([sample for sample in each["samples"]] for each in document["overhead"])
    handler = [t["handler_ms"] / b["handler_ms"] for t, b in zip(tree, base, strict=True)]
    assert found["time of the handler"] == pytest.approx(sum(handler) / 2)
    base, tree = ([s["off_s"] / s["on_s"] for s in each["samples"]] for each in document["gain"])
    gains = [b / t for t, b in zip(tree, base, strict=True)]
    assert found["batching gain, base / this"] == pytest.approx(sum(gains) / 2)
    assert {"beside the model's stages", "time of a batched burst"} < found.keys()


@pytest.mark.acceptance
def test_plain_worker_and_ours_serve_the_same_jobs_through_the_platform(tmp_path):
    stdout = rehearse("load_bench", "--quick", "--only", "mixed", "--out", tmp_path)
    assert "\nMixed jobs " in stdout
    document = json.loads(stdout.splitlines()[-1])
    plain, off, on = document["mixed"]["sides"].values()
    assert plain["jobs"] == off["jobs"] == on["jobs"] == 6
    assert off["levels_apart"] <= 1
    assert on["levels_apart"] <= 1
    ratio = document["mixed"]["ratios"]["ours, batching on over plain worker"]
    assert ratio["median"] == pytest.approx(on["images_per_s"] / plain["images_per_s"])


def test_results_are_printed_and_written(run, document):
    stdout, out = run
    assert document["is_rehearsal"] is True
    assert json.loads((out / "load.json").read_text()) == document
    for title in ("This checkout / base", "Overhead", "Batching", "Targets"):
        assert f"\n{title} " in stdout


def test_job_that_fails_ends_the_benchmark():
    (job,) = same_size_jobs("sd15-tiny", 1)
    with (
        running_side(models=("sd15-tiny",)) as side,
        pytest.raises(SideFailed, match="invalid_input"),
    ):
        side.order("burst", jobs=[{**job, "width": 7}], is_batching=True)


def test_what_is_beside_the_stages_holds_queue_and_encoding():
    phases = {"queue": 1.0, "text_encode": 2.0, "denoise": 40.0, "decode": 8.0, "encode": 3.0}
    sample = Sample(handler_ms=58.5, bare_ms=51.0, phases_ms=phases, levels_apart=0)
    assert (sample.beside_stages_ms, sample.added_ms) == (8.5, 7.5)
    assert replace(sample, handler_ms=60.5).beside_stages_ms == 10.5


class TestJobs:
    def test_same_seed_gives_the_same_jobs_and_another_others(self):
        assert mixed_jobs(30) == mixed_jobs(30) != mixed_jobs(30, seed=1)

    def test_jobs_are_mixed_in_all_that_they_may_differ_in(self):
        jobs = mixed_jobs(200)
        counts = [sum(job["model"] == model for job in jobs) for model in MODELS]
        assert max(counts) - min(counts) <= 1
        assert {(job["width"], job["height"]) for job in jobs} == {*SIZES}
        assert {job["num_inference_steps"] for job in jobs} == {*STEPS}
        assert len({job["prompt"] for job in jobs}) > 100

    def test_jobs_of_one_size_differ_in_prompt_and_seed_only(self):
        jobs = same_size_jobs("flux-tiny", 8)
        first, *others = [{**job, "prompt": "", "seed": 0} for job in jobs]
        assert others == [first] * 7
        assert len({job["seed"] for job in jobs}) == 8

    def test_levels_apart_are_the_most_that_any_value_differs(self):
        one, other = (_png(level) for level in (7, 10))
        assert levels_apart(one, other) == 3
        assert levels_apart(one, one) == 0


def _png(level: int) -> str:
    import base64
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (2, 2), (0, level, 255)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
