"""Generated payloads through a worker: each is answered with images or with a code."""

import asyncio
import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from pydantic import SecretStr
from support.factories import OFFER, make_job
from support.generated_payloads import REQUEST, jobs

from pixpod.inputs.client import GuardedClient
from pixpod.inputs.intake import Intake
from pixpod.inputs.targets import Targets
from pixpod.job import Delivery
from pixpod.outputs.caller_stores import CallerStores
from pixpod.outputs.storage import DirectoryImageStore, InlineImageStore
from pixpod.serving.concurrency import Concurrency
from pixpod.serving.delivery import ImageDelivery
from pixpod.serving.refresh import Refresh
from pixpod.serving.worker import Worker
from pixpod.testing.fake_engine import FakeEngine

SCHEMA = Draft202012Validator(REQUEST)
MAX_ERROR_BYTES = 20_000
CODES = {"invalid_input", "not_supported", "result_too_large"}


class SmallImages(FakeEngine):
    """An engine whose images are of one pixel, whatever is requested."""

    async def generate(self, request, on_step=None):
        return await super().generate(replace(request, width=1, height=1), on_step)


def build_worker(directory):
    return Worker(
        capabilities=OFFER,
        engine=SmallImages(),
        delivery=ImageDelivery(
            stores={
                Delivery.INLINE: InlineImageStore(),
                Delivery.DIRECTORY: DirectoryImageStore(directory),
            },
            key_prefix="images",
            key_secret=SecretStr("hidden"),
            max_reply_bytes=10_000_000,
            callers=CallerStores(GuardedClient(Targets()), Targets()),
        ),
        usd_per_gpu_second=0.5,
        concurrency=Concurrency(max_when_warm=1, is_warm=lambda: True, num_taken=lambda: 1),
        refresh=Refresh(after_images=0),
        intake=Intake(GuardedClient(Targets())),
        platform=None,
        worker_id="pod-1",
        max_job_s=60,
    )


def run_generated(num_payloads, directory):
    """Run payloads through one worker and count the outcomes by code."""
    worker = build_worker(directory)
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=num_payloads,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(jobs())
    def run(job):
        given = json.loads(json.dumps(job.get("input")))
        reply = asyncio.run(worker.handle(job))
        rendered = json.dumps(reply, allow_nan=False)
        if "error" not in reply:
            # jsonschema's `\s` is Python's and has \x1c to \x1f, which JSON Schema's has not
            assert SCHEMA.is_valid(given) or not given["prompt"].strip()
            outcomes["images"] += 1
            return
        code, _, text = reply["error"].partition(": ")
        assert code in CODES
        assert code == "result_too_large" or json.loads(text)["problems"]
        assert len(rendered) < MAX_ERROR_BYTES
        outcomes[code] += 1

    run()
    assert "images" in asyncio.run(worker.handle(make_job()))
    return outcomes


def test_generated_payloads_get_images_or_a_code(tmp_path):
    outcomes = run_generated(300, tmp_path)
    assert outcomes["images"] >= 20
    assert outcomes["invalid_input"] >= 100


@pytest.mark.acceptance
def test_many_generated_payloads_get_images_or_a_code(tmp_path):
    outcomes = run_generated(10_000, tmp_path)
    for outcome, count in outcomes.most_common():
        print(f"{outcome:20} {count:6}")
    assert outcomes["images"] >= 500
