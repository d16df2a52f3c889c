"""`/retry` of a job whose upload failed, with the real SDK: what is counted are denoiser calls."""

import hashlib
import urllib.request
from pathlib import Path

import pytest
from support.faulty_proxy import Fault, running_proxy
from support.platform import call, submit, wait_for
from support.s3_server import running_s3

from runpod_emulator.testing import running_emulator, settings_for

pytestmark = pytest.mark.sdk

HANDLER = Path(__file__).resolve().parents[1] / "support" / "handlers" / "counting.py"
GIVEN = {"model": "sd15-tiny", "prompt": "a red circle", "num_images": 2}


@pytest.fixture
def server():
    with running_s3() as server:
        yield server


def test_retry_delivers_the_same_images_without_a_denoiser_call(server, tmp_path):
    with running_proxy(server.endpoint_url) as proxy:
        proxy.faulty_method = "PUT"
        proxy.faults += [Fault.FORBIDDEN] * 100
        environ = {
            "COUNT_FILE": str(tmp_path / "calls"),
            "PIXPOD_MODELS": "sd15-tiny",
            "PIXPOD_S3_BUCKET": server.bucket,
            "PIXPOD_S3_ENDPOINT_URL": proxy.url,
            "PIXPOD_S3_ACCESS_KEY_ID": server.access_key_id,
            "PIXPOD_S3_SECRET_ACCESS_KEY": server.secret_access_key,
            "PIXPOD_S3_ADDRESSING_STYLE": "path",
            "PIXPOD_SPOOL_DIR": str(tmp_path / "spool"),
            "PIXPOD_MAX_REPLY_BYTES": "1000",
        }
        settings = settings_for(HANDLER, tmp_path, env=environ, workers_min=1, workers_max=1)
        with running_emulator(settings) as platform:
            job_id = submit(platform, {"input": GIVEN})
            failed = wait_for(platform, job_id)
            assert failed["status"] == "FAILED"
            assert failed["error"].startswith("storage_denied: ")
            assert "/retry" in failed["error"]
            calls = (tmp_path / "calls").read_text(encoding="utf-8")
            assert calls
            digests = {
                path.stem.partition("-")[2] for path in (tmp_path / "spool").glob("*/*/*.png")
            }
            assert len(digests) == 2

            proxy.faults.clear()
            call(platform, f"/retry/{job_id}", {})
            retried = wait_for(platform, job_id)
        assert retried["status"] == "COMPLETED"
        output = retried["output"]
        assert {image["sha256"] for image in output["images"]} == digests
        assert (tmp_path / "calls").read_text(encoding="utf-8") == calls
        assert output["cost"]["gpu_ms"] == 0
        for image in output["images"]:
            with urllib.request.urlopen(image["url"], timeout=10) as response:
                assert hashlib.sha256(response.read()).hexdigest() == image["sha256"]
        assert list((tmp_path / "spool").glob("*/*")) == []
