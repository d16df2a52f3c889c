"""The real SDK runs the real handler as a production worker behind the emulated platform."""

import base64
import hashlib
import urllib.request
from pathlib import Path

import pytest
from support import planted
from support.platform import submit, wait_for
from support.s3_server import S3Server, running_s3

from runpod_emulator.testing import RunningEmulator, running_emulator, settings_for

pytestmark = pytest.mark.sdk

HANDLER = Path(__file__).resolve().parents[2] / "handler.py"
PROMPT = "a red circle on a blue background, zanzibar"
LONG_PROMPT = " ".join([PROMPT, *["marmalade"] * 200])


@pytest.fixture(scope="module")
def s3():
    with running_s3() as server:
        yield server


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("platform")


def environ_of(s3: S3Server) -> dict[str, str]:
    return {
        "PIXPOD_S3_BUCKET": s3.bucket,
        "PIXPOD_S3_ENDPOINT_URL": s3.endpoint_url,
        "PIXPOD_S3_ACCESS_KEY_ID": s3.access_key_id,
        "PIXPOD_S3_SECRET_ACCESS_KEY": s3.secret_access_key,
        "PIXPOD_S3_ADDRESSING_STYLE": "path",
        "RUNPOD_LOG_LEVEL": "DEBUG",
    }


@pytest.fixture(scope="module")
def platform(s3: S3Server, state_dir: Path):
    settings = settings_for(HANDLER, state_dir, env=environ_of(s3), workers_min=1, workers_max=1)
    with running_emulator(settings) as running:
        yield running


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        body: bytes = response.read()
        return body


def run(platform: RunningEmulator, **given: object) -> dict:
    return wait_for(platform, submit(platform, {"input": given}))


class TestProductionWorker:
    """Tests run in this order on one worker; the last ones look at all that it printed."""

    def test_flux_job_ends_in_s3(self, platform, s3):
        output = run(platform, model="flux-tiny", prompt=PROMPT)["output"]
        image = output["images"][0]
        assert output["model"]["precision"] == "float8_dynamic"
        assert output["worker"]["cold_start"] is True
        with urllib.request.urlopen(image["url"]) as response:
            fetched = response.read()
        assert response.headers["Content-Type"] == "image/png"
        assert fetched == s3.get(image["key"])["Body"]
        assert len(fetched) == image["size_bytes"]

    def test_inline_job_returns_base64(self, platform):
        output = {"delivery": "inline", "format": "webp"}
        body = run(platform, model="sdxl-tiny", prompt=PROMPT, output=output)
        data = base64.b64decode(body["output"]["images"][0]["data"], validate=True)
        assert data[:4] == b"RIFF"

    def test_only_the_first_reply_is_a_cold_start(self, platform):
        body = run(platform, model="flux-tiny", prompt=PROMPT)
        assert body["output"]["worker"]["cold_start"] is False
        assert body["output"]["worker"]["id"] == body["workerId"]
        assert body["output"]["worker"]["images_served"] == 3

    @pytest.mark.parametrize("fault", [{"action": "drop"}, {"action": "status", "value": 429}])
    def test_result_that_is_refused_twice_is_delivered(self, platform, fault):
        platform.add_fault(id="refused", at="job-done", count=2, **fault)
        body = run(platform, model="flux-tiny", prompt=PROMPT, num_inference_steps=1)
        platform.clear_faults()
        assert body["status"] == "COMPLETED"
        assert platform.job(body["id"])["executions"] == 1

    def test_inline_images_that_are_too_large_go_to_the_bucket(self, platform, s3):
        refused = {"at": "job-done", "action": "status", "value": 413, "count": 1}
        platform.add_fault(id="too-large", **refused)
        given = {"num_inference_steps": 1, "output": {"delivery": "inline"}}
        body = run(platform, model="flux-tiny", prompt=PROMPT, **given)
        platform.clear_faults()
        (image,) = body["output"]["images"]
        assert len(s3.get(image["key"])["Body"]) == image["size_bytes"]
        assert "data" not in image
        assert platform.job(body["id"])["executions"] == 1

    def test_job_whose_result_was_lost_is_answered_from_the_bucket(self, platform, s3):
        lost = {"at": "job-done", "action": "status", "value": 404, "count": 1}
        platform.add_fault(id="lost-result", **lost)
        # one step, of which no progress is told: that would be lost in place of the result
        body = run(platform, model="flux-tiny", prompt=PROMPT, num_inference_steps=1)
        platform.clear_faults()
        assert platform.job(body["id"])["executions"] == 2, "the first result was to be lost"
        assert body["output"]["cost"]["gpu_ms"] == 0
        assert "denoise" not in body["output"]["timings_ms"]
        image = body["output"]["images"][0]
        keys = [each for each in s3.all_keys() if body["id"] in each]
        assert [key for key in keys if not key.endswith(".result")] == [image["key"]]
        assert fetched(image["url"]) == s3.get(image["key"])["Body"]

    def test_bad_payload_is_an_error_string(self, platform):
        body = run(platform, model="flux-tiny", prompt=PROMPT, width=65)
        assert body["status"] == "FAILED"
        assert body["error"].startswith("invalid_input: ")
        assert "output" not in body

    def test_long_prompt_is_refused_with_counts_or_cut_with_a_warning(self, platform):
        refused = run(platform, model="sdxl-tiny", prompt=LONG_PROMPT)
        assert "at most 77 tokens" in refused["error"]
        cut = run(platform, model="sdxl-tiny", prompt=LONG_PROMPT, on_long_prompt="truncate")
        assert "only 77 of its" in cut["output"]["warnings"][0]

    def test_nothing_is_held_to_hang_in_production(self, platform):
        hazards = platform.state()["hazards"]["counts"]
        assert hazards == {"lost-result": 1}, "only the result that a fault has thrown away"

    def test_nothing_planted_was_printed(self, platform, s3, state_dir):
        """`test_planted_words.py` looks everywhere else, and at jobs with other ends."""
        known = run(platform, model="flux-tiny", **planted.REFUSED)
        given = {"model": "flux-tiny", "prompt": PROMPT}
        wait_for(platform, submit(platform, {"input": given, "s3Config": planted.S3_CONFIG}))
        printed = "".join(each.read_text() for each in (state_dir / "logs").glob("*.log"))
        assert known["id"] in printed, "the log must be the worker's"
        (worker,) = platform.gateway.endpoints["test"].fleet.workers.values()
        words = (*planted.PROMPTS, *planted.CREDENTIALS, "Signature=", "a red circle")
        words += (s3.secret_access_key, worker.token, platform.api_key)
        assert planted.words_in(printed, words) == []

    def test_sigterm_ends_it_with_status_0(self, platform):
        platform.stop()
        (worker,) = platform.gateway.endpoints["test"].fleet.retired
        assert worker.reason == "emulator ends: exited with 0"


def test_job_whose_worker_was_killed_after_the_upload_is_answered_from_the_bucket(s3, tmp_path):
    environ = {**environ_of(s3), "PIXPOD_MODELS": "sd15-tiny"}
    with running_emulator(settings_for(HANDLER, tmp_path, env=environ)) as platform:
        lost = {"at": "job-result", "count": 1}
        platform.add_fault(id="late", action="delay", value=0.5, **lost)
        platform.add_fault(id="killed", action="kill", **lost)
        body = run(platform, model="sd15-tiny", prompt=PROMPT, num_inference_steps=1)
        assert platform.job(body["id"])["executions"] == 2
    assert body["output"]["cost"]["gpu_ms"] == 0
    assert "denoise" not in body["output"]["timings_ms"]
    image = body["output"]["images"][0]
    assert hashlib.sha256(fetched(image["url"])).hexdigest() == image["sha256"]


def test_broken_deployment_answers_each_job_with_its_fault(tmp_path):
    environ = {"PIXPOD_MODELS": "flux-tiny,no-such-model"}
    with running_emulator(settings_for(HANDLER, tmp_path, env=environ)) as platform:
        bodies = [run(platform, model="flux-tiny", prompt=PROMPT) for _ in range(2)]
        assert len(platform.state()["endpoints"]["test"]["workers"]) == 1
    assert bodies[0]["workerId"] == bodies[1]["workerId"], "it need not be replaced"
    for body in bodies:
        assert body["error"].startswith("invalid_settings: ")
        assert "no-such-model" in body["error"]
