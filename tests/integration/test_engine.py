"""What an engine promises, on real pipelines of toy size: seeds, batches, text limits, cancel."""

import asyncio
import threading

import numpy as np
import pytest
from support.tiny_models import MODELS, Desk, Pixels, build_tiny_worker

from pixpod.families import SDXL
from pixpod.weights.manifest import MANIFEST, ManifestEntry, render_manifest

PROMPT = "a red circle on a blue background"
DISTINCT_SCHEDULERS = {id(spec): name for name, spec in SDXL.schedulers.items()}.values()
"""One name for each scheduler of the UNets."""

SIXTEEN_BIT_BOUND = 4
"""Levels of 255 by which an image may differ between batch sizes in bfloat16 and float8."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    yield from _open_desk(tmp_path_factory)


@pytest.fixture(scope="module", params=["float8_dynamic", "bfloat16", "float32"])
def flux_desk(request, tmp_path_factory):
    yield from _open_desk(tmp_path_factory, PIXPOD_PRECISION=request.param)


def _open_desk(tmp_path_factory, **environ: str):
    worker = build_tiny_worker(tmp_path_factory.mktemp("out"), **environ)
    worker.start()
    yield Desk(worker)
    worker.stop()


def distance(left: Pixels, right: Pixels) -> np.ndarray:
    return np.abs(left.astype(int) - right.astype(int))


def psnr_db(left: Pixels, right: Pixels) -> float:
    error = np.mean(distance(left, right) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


class TestSeeds:
    @pytest.mark.parametrize("model", MODELS)
    def test_same_seed_gives_the_same_bytes_whatever_ran_between(self, desk, model):
        first = desk.generate(model, PROMPT, seed=5)[0]
        desk.generate(model, "a green cross on a white background", seed=9, num_inference_steps=3)
        assert np.array_equal(desk.generate(model, PROMPT, seed=5)[0], first)

    @pytest.mark.parametrize("model", MODELS)
    def test_another_seed_gives_another_image(self, desk, model):
        assert not np.array_equal(*desk.generate(model, PROMPT, seed=[1, 2]))

    def test_retried_job_gives_the_same_image(self, desk):
        given = {"model": "sdxl-tiny", "prompt": PROMPT, "num_images": 2}
        first, again, other = (desk.reply(job_id, **given) for job_id in ("a", "a", "b"))
        hashes = [[image["sha256"] for image in reply["images"]] for reply in (first, again, other)]
        assert hashes[0] == hashes[1]
        assert hashes[0] != hashes[2]


class TestBatches:
    def test_neighbours_never_change_an_image(self, flux_desk):
        one = flux_desk.generate("flux-tiny", PROMPT, seed=[1, 2, 3, 4])
        two = flux_desk.generate("flux-tiny", PROMPT, seed=[1, 70, 80, 90])
        assert np.array_equal(one[0], two[0])
        assert not np.array_equal(one[1], two[1])

    def test_position_in_the_batch_never_changes_an_image(self, flux_desk):
        forward = flux_desk.generate("flux-tiny", PROMPT, seed=[1, 2, 3, 4])
        backward = flux_desk.generate("flux-tiny", PROMPT, seed=[4, 3, 2, 1])
        for left, right in zip(forward, reversed(backward), strict=True):
            assert np.array_equal(left, right)

    @pytest.mark.parametrize("model", ["sdxl-tiny", "sd15-tiny"])
    def test_neighbours_never_change_an_image_of_a_unet(self, desk, model):
        one = desk.generate(model, PROMPT, seed=[1, 2, 3, 4])
        two = desk.generate(model, PROMPT, seed=[1, 70, 80, 90])
        assert np.array_equal(one[0], two[0])

    def test_another_batch_size_stays_within_bounds(self, flux_desk):
        alone = flux_desk.generate("flux-tiny", PROMPT, seed=1)[0]
        batched = flux_desk.generate("flux-tiny", PROMPT, seed=[1, 2, 3, 4])[0]
        precision = flux_desk.reply(model="flux-tiny", prompt=PROMPT)["model"]["precision"]
        bound = 1 if precision == "float32" else SIXTEEN_BIT_BOUND
        assert distance(alone, batched).max() <= bound
        assert psnr_db(alone, batched) >= 40

    @pytest.mark.parametrize("model", ["sdxl-tiny", "sd15-tiny"])
    def test_another_batch_size_stays_within_bounds_in_a_unet(self, desk, model):
        alone = desk.generate(model, PROMPT, seed=1)[0]
        batched = desk.generate(model, PROMPT, seed=[1, 2, 3, 4])[0]
        assert distance(alone, batched).max() <= 1

    def test_deterministic_gives_the_bytes_of_the_image_alone(self, flux_desk):
        alone = flux_desk.generate("flux-tiny", PROMPT, seed=3)[0]
        together = flux_desk.generate("flux-tiny", PROMPT, seed=[1, 2, 3], deterministic=True)
        assert np.array_equal(together[2], alone)


class TestRequests:
    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize(("width", "height"), [(64, 96), (96, 64)])
    def test_sizes_are_kept(self, desk, model, width, height):
        image = desk.generate(model, PROMPT, width=width, height=height)[0]
        assert image.shape == (height, width, 3)

    @pytest.mark.parametrize("model", ["sdxl-tiny", "sd15-tiny"])
    def test_schedulers_leave_no_trace(self, desk, model):
        def usual():
            return desk.generate(model, PROMPT, seed=1, num_inference_steps=4)[0]

        before, left = usual(), []
        for scheduler in DISTINCT_SCHEDULERS:
            desk.generate(model, PROMPT, seed=1, num_inference_steps=4, scheduler=scheduler)
            if not np.array_equal(usual(), before):
                left.append(scheduler)
        assert not left

    @pytest.mark.parametrize(
        ("model", "options"),
        [
            ("flux-tiny", {"true_cfg_scale": 2.0, "negative_prompt": "a blue square"}),
            ("flux-tiny", {"guidance_scale": 1.5}),
            ("flux-tiny", {"prompt_2": "a green square on a white background"}),
            ("sdxl-tiny", {"negative_prompt": "a blue square"}),
            ("sdxl-tiny", {"prompt_2": "a green square on a white background"}),
            ("sdxl-tiny", {"guidance_scale": 0.0}),
            ("sd15-tiny", {"negative_prompt": "a blue square"}),
            ("sd15-tiny", {"guidance_scale": 1.0}),
            ("sd15-tiny", {"num_inference_steps": 5}),
        ],
    )
    def test_every_option_has_an_effect(self, desk, model, options):
        plain = desk.generate(model, PROMPT, seed=1)[0]
        assert not np.array_equal(desk.generate(model, PROMPT, seed=1, **options)[0], plain)

    @pytest.mark.parametrize("model", MODELS)
    def test_phases_add_up(self, desk, model):
        prompt = "a prompt that no other test has"
        spent = desk.reply(model=model, prompt=prompt)["timings_ms"]
        phases = sum(milliseconds for phase, milliseconds in spent.items() if phase != "total")
        assert phases <= spent["total"] + 1
        assert min(spent[phase] for phase in ("text_encode", "denoise", "decode")) > 0
        again = desk.reply(model=model, prompt=prompt)["timings_ms"]
        assert spent.keys() - again.keys() == {"text_encode"}, "its embeddings were kept"

    @pytest.mark.parametrize("size", ["width", "height"])
    def test_precision_that_ran_is_reported(self, desk, size):
        reply = desk.reply(model="sdxl-tiny", prompt=PROMPT, **{size: 96})
        assert reply["model"] == {
            "name": "sdxl-tiny",
            "revision": "1",
            "precision": "float32",
            "weights": "baked",
        }


class TestLongPrompts:
    LONG = " ".join(["circle"] * 200)

    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
    def test_refused_with_counts(self, desk, model, field):
        given: dict[str, object] = {"prompt": PROMPT, field: self.LONG}
        if model == "flux-tiny" and field == "negative_prompt":
            given["true_cfg_scale"] = 2.0
        error = desk.reply(model=model, **given)["error"]
        assert error.startswith("invalid_input: ")
        assert error.count(f'"field": "{field}"') == 1
        assert "circle circle" not in error

    @pytest.mark.parametrize("model", MODELS)
    def test_cut_with_a_warning_on_demand(self, desk, model):
        reply = desk.reply(model=model, prompt=self.LONG, on_long_prompt="truncate")
        cut = [warning for warning in reply["warnings"] if "T5 reads it" not in warning]
        assert len(cut) == 1
        assert cut[0].startswith("prompt: only ")

    def test_clip_of_flux_reads_less_than_t5_and_says_so(self, desk):
        prompt = " ".join([PROMPT, *["circle"] * 80])
        reply = desk.reply(model="flux-tiny", prompt=prompt, max_sequence_length=128)
        assert len(reply["warnings"]) == 1
        assert "by CLIP; T5 reads it as well" in reply["warnings"][0]


class TestCancel:
    def test_cancelled_job_stops_early_and_the_next_one_is_served(self, desk):
        desk.generate("sdxl-tiny", PROMPT)

        async def cancel_soon() -> None:
            given = {"model": "sdxl-tiny", "prompt": PROMPT, "num_inference_steps": 50}
            job = {"id": "slow", "input": {**given, "num_images": 8}}
            task = asyncio.create_task(desk.worker.handle(job))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancel_soon())
        spent = desk.reply(model="sdxl-tiny", prompt=PROMPT, seed=1)["timings_ms"]
        assert spent["queue"] < spent["denoise"] * 3, "the cancelled job ran on"

    def test_stopping_a_worker_leaves_no_thread(self, tmp_path):
        async def one_job() -> None:
            async with build_tiny_worker(tmp_path) as worker:
                await worker.handle({"id": "a", "input": {"model": "sd15-tiny", "prompt": PROMPT}})

        before = threading.enumerate()
        asyncio.run(one_job())
        left = [thread for thread in threading.enumerate() if thread not in before]
        assert not [thread for thread in left if thread.name.startswith("device")]


class TestUnavailableModels:
    def test_cuda_model_never_runs_on_a_cpu(self, tmp_path):
        weights = tmp_path / "weights"
        folder = weights / "sdxl"
        for component in SDXL.component_names:
            (folder / component).mkdir(parents=True)
            (folder / component / "model.safetensors").touch()
        (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
        manifest = {"sdxl": ManifestEntry(name="sdxl", path="sdxl", revision="1")}
        (weights / MANIFEST).write_text(render_manifest(manifest))
        environ = {"PIXPOD_WEIGHTS_DIR": str(weights)}
        reply = self._reply(tmp_path, "sdxl", **environ)
        assert reply["error"].startswith("device_unavailable: sdxl runs on CUDA only")
        assert reply["refresh_worker"] is True

    def test_licence_must_be_accepted_first(self, tmp_path):
        reply = self._reply(tmp_path, "flux-dev", PIXPOD_MODELS="flux-dev")
        assert reply["error"].startswith("licence_not_accepted: ")
        accepted = {"PIXPOD_ACCEPT_LICENCES": "flux-1-dev-non-commercial"}
        reply = self._reply(tmp_path, "flux-dev", PIXPOD_MODELS="flux-dev", **accepted)
        assert reply["error"].startswith("model_unavailable: ")

    def test_unet_cannot_be_float8(self, tmp_path):
        reply = self._reply(tmp_path, "sd15-tiny", PIXPOD_PRECISION="float8_dynamic")
        assert reply["error"].startswith("model_unavailable: ")

    def _reply(self, tmp_path, model: str, **environ: str) -> dict:
        worker = build_tiny_worker(tmp_path, **environ)
        worker.start()
        try:
            return Desk(worker).reply(model=model, prompt=PROMPT)
        finally:
            worker.stop()
