"""The real SDK runs the real handler as a production worker, against a stub of the platform."""

import base64
import os
import signal
import urllib.request
from pathlib import Path

import pytest
from support.s3_server import S3Server, running_s3
from support.stub_platform import StubPlatform, running_platform, running_worker

PROMPT = "a red circle on a blue background, zanzibar"
LONG_PROMPT = " ".join([PROMPT, *["marmalade"] * 200])


@pytest.fixture(scope="module")
def s3():
    with running_s3() as server:
        yield server


@pytest.fixture(scope="module")
def platform():
    with running_platform() as running:
        yield running


@pytest.fixture(scope="module")
def worker_log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("worker") / "log"


@pytest.fixture(scope="module")
def worker(platform: StubPlatform, s3: S3Server, worker_log: Path):
    environ = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "PIXPOD_S3_BUCKET": s3.bucket,
        "PIXPOD_S3_ENDPOINT_URL": s3.endpoint_url,
        "PIXPOD_S3_ACCESS_KEY_ID": s3.access_key_id,
        "PIXPOD_S3_SECRET_ACCESS_KEY": s3.secret_access_key,
        "PIXPOD_S3_ADDRESSING_STYLE": "path",
        "RUNPOD_LOG_LEVEL": "DEBUG",
    }
    with running_worker(platform, environ, worker_log) as process:
        yield process


def run(platform: StubPlatform, job_id: str, **given: object) -> dict:
    return platform.run({"id": job_id, "input": given})


@pytest.mark.usefixtures("worker")
class TestProductionWorker:
    """Tests run in this order on one worker; the last ones look at all that it printed."""

    def test_flux_job_ends_in_s3(self, platform, s3):
        body = run(platform, "flux-1", model="flux-tiny", prompt=PROMPT)
        image = body["output"]["images"][0]
        assert body["output"]["model"]["precision"] == "float8_dynamic"
        with urllib.request.urlopen(image["url"]) as response:
            fetched = response.read()
        assert response.headers["Content-Type"] == "image/png"
        assert fetched == s3.get(image["key"])["Body"]
        assert len(fetched) == image["size_bytes"]

    def test_inline_job_returns_base64(self, platform):
        output = {"delivery": "inline", "format": "webp"}
        body = run(platform, "sdxl-1", model="sdxl-tiny", prompt=PROMPT, output=output)
        data = base64.b64decode(body["output"]["images"][0]["data"], validate=True)
        assert data[:4] == b"RIFF"

    def test_only_the_first_reply_is_a_cold_start(self, platform):
        body = run(platform, "flux-2", model="flux-tiny", prompt=PROMPT)
        first = platform.results["flux-1"]["output"]["worker"]
        assert first["cold_start"] is True
        assert first["id"] == "worker-1"
        assert body["output"]["worker"]["cold_start"] is False
        assert body["output"]["worker"]["images_served"] == 3

    def test_retried_job_overwrites_its_own_image(self, platform):
        first = platform.results.pop("flux-1")["output"]["images"][0]
        again = run(platform, "flux-1", model="flux-tiny", prompt=PROMPT)["output"]["images"][0]
        assert (again["key"], again["seed"], again["sha256"]) == (
            first["key"],
            first["seed"],
            first["sha256"],
        )

    def test_bad_payload_is_an_error_string(self, platform):
        body = run(platform, "bad-1", model="flux-tiny", prompt=PROMPT, width=65)
        assert body["error"].startswith("invalid_input: ")
        assert "output" not in body and "stopPod" not in body

    def test_long_prompt_is_refused_with_counts_or_cut_with_a_warning(self, platform):
        refused = run(platform, "long-1", model="sdxl-tiny", prompt=LONG_PROMPT)
        assert "at most 77 tokens" in refused["error"]
        cut = run(
            platform,
            "long-2",
            model="sdxl-tiny",
            prompt=LONG_PROMPT,
            on_long_prompt="truncate",
        )
        assert "only 77 of its" in cut["output"]["warnings"][0]

    def test_nothing_secret_was_printed(self, platform, s3, worker_log):
        urls = {
            "webhook_url": "https://client.example/hook?token=pomegranate",
            "image": "https://bucket.example/in.png?X-Amz-Signature=persimmon",
        }
        run(platform, "planted-1", model="flux-tiny", prompt=PROMPT, **urls)
        platform.run(
            {
                "id": "planted-2",
                "input": {"model": "flux-tiny", "prompt": PROMPT},
                "s3Config": {"accessSecret": "tamarind"},
            }
        )
        run(platform, "planted-3", model="flux-tiny", prompt=PROMPT, api_key="quince")
        printed = worker_log.read_text()
        assert "flux-1" in printed, "the log must be the worker's"
        planted = ["zanzibar", "marmalade", "pomegranate", "persimmon", "tamarind", "quince"]
        planted += ["X-Amz-Signature", "Signature=", s3.secret_access_key, "loopback-only-key"]
        planted += ["a red circle"]
        assert [word for word in planted if word in printed] == []

    def test_sigterm_ends_it_with_status_0(self, platform, worker):
        worker.send_signal(signal.SIGTERM)
        platform.release()
        assert worker.wait(timeout=30) == 0


def test_broken_deployment_answers_each_job_with_its_fault(tmp_path):
    environ = {"PATH": os.environ["PATH"], "PIXPOD_MODELS": "flux-tiny,no-such-model"}
    with (
        running_platform() as platform,
        running_worker(platform, environ, tmp_path / "log") as process,
    ):
        bodies = [run(platform, f"job-{n}", model="flux-tiny", prompt=PROMPT) for n in range(2)]
        assert process.poll() is None
    for body in bodies:
        assert body["error"].startswith("invalid_settings: ")
        assert "no-such-model" in body["error"]
        assert "stopPod" not in body


def test_weights_that_cannot_be_read_replace_the_worker(tmp_path):
    folder = tmp_path / "weights" / "flux"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (tmp_path / "weights" / "manifest.toml").write_text(
        '[flux-tiny]\npath = "flux"\nrevision = "1"\n'
    )
    environ = {"PATH": os.environ["PATH"], "PIXPOD_WEIGHTS_DIR": str(tmp_path / "weights")}
    with (
        running_platform() as platform,
        running_worker(platform, environ, tmp_path / "log"),
    ):
        body = run(platform, "job-1", model="flux-tiny", prompt=PROMPT)
    assert body["error"].startswith("weights_unreadable: ")
    assert body["stopPod"] is True
