"""Generated payloads through a worker: each is answered with images or with a code."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import SecretStr
from support.factories import OFFER, make_job
from support.generated_payloads import REQUEST, jobs

from pixpod.contract.webhooks import find_webhook
from pixpod.inputs.client import Answer, GuardedClient
from pixpod.inputs.intake import Intake
from pixpod.inputs.targets import Targets
from pixpod.job import Delivery
from pixpod.outputs.caller_stores import CallerStores
from pixpod.outputs.storage import DirectoryImageStore, InlineImageStore
from pixpod.serving.concurrency import Concurrency
from pixpod.serving.dead_letters import DeadLetters
from pixpod.serving.delivery import ImageDelivery
from pixpod.serving.messages import MAX_BODY_BYTES
from pixpod.serving.refresh import Refresh
from pixpod.serving.safety import Safety
from pixpod.serving.webhooks import Webhooks
from pixpod.serving.worker import Worker
from pixpod.testing.fake_engine import FakeEngine

SCHEMA = Draft202012Validator(REQUEST)
MAX_ERROR_BYTES = 20_000
CODES_WITH_PROBLEMS = {
    "invalid_input",
    "not_supported",
    "put_refused",
    "url_refused",
    "fetch_failed",
    "fetch_unavailable",
    "image_refused",
    "weights_refused",
}
CODES = CODES_WITH_PROBLEMS | {"result_too_large", "invalid_settings"}
SECRETS = (SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),)


class SmallImages(FakeEngine):
    """An engine whose images are of one pixel, whatever is requested."""

    async def generate(self, request, on_step=None):
        return await super().generate(replace(request, width=1, height=1), on_step)


class CalmClassifier:
    """A Classifier that finds every image safe."""

    def prepare(self, image):
        return image

    def scores(self, prepared):
        return [0.0] * len(prepared)


@dataclass
class Receivers:
    """A WebhookClient. Receivers on port 443 take what they get; those on others refuse it."""

    types: list[str] = field(default_factory=list)

    async def write(self, method, target, body, headers, *, total_s):
        self.types.append(json.loads(body)["type"])
        assert len(body) <= MAX_BODY_BYTES
        return Answer(status=204 if target.port == 443 else 410, body=b"")

    def close(self):
        pass


def build_worker(directory, receivers=None):
    """Without `receivers`, a worker of a deployment that sends no webhooks."""
    letters = DeadLetters(store=DirectoryImageStore(directory), secrets=SECRETS)
    return Worker(
        capabilities=replace(OFFER, signs_webhooks=receivers is not None),
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
        safety=Safety(load=CalmClassifier),
        webhooks=receivers and Webhooks(client=receivers, secrets=SECRETS, letters=letters),
    )


def run_generated(num_payloads, directory):
    """Run payloads through two workers, and count the outcomes by code and events by type."""
    receivers = Receivers()
    workers = (build_worker(directory), build_worker(directory, receivers))
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=num_payloads,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(jobs(), st.sampled_from(workers))
    def run(job, worker):
        given = json.loads(json.dumps(job.get("input")))
        webhook = find_webhook(job, worker.capabilities)
        receivers.types.clear()
        reply = asyncio.run(worker.handle(job))
        rendered = json.dumps(reply, allow_nan=False)
        final = "failed" if "error" in reply else "completed"
        is_chosen = webhook is not None and final in webhook.events
        assert receivers.types.count(final) == is_chosen
        outcomes.update(f"{each} event" for each in receivers.types)
        if "error" not in reply:
            # jsonschema's `\s` is Python's and has \x1c to \x1f, which JSON Schema's has not
            assert SCHEMA.is_valid(given) or not given["prompt"].strip()
            outcomes["images"] += 1
            return
        code, _, text = reply["error"].partition(": ")
        assert code in CODES
        assert code not in CODES_WITH_PROBLEMS or json.loads(text)["problems"]
        assert code != "invalid_settings" or (worker.webhooks is None and given["webhook_url"])
        assert len(rendered) < MAX_ERROR_BYTES
        outcomes[code] += 1

    run()
    assert all("images" in asyncio.run(worker.handle(make_job())) for worker in workers)
    outcomes["dead letters"] = len([*directory.rglob("*.dead-letter")])
    return outcomes


def test_generated_payloads_get_images_or_a_code(tmp_path):
    outcomes = run_generated(600, tmp_path)
    assert outcomes["images"] >= 20
    assert outcomes["invalid_input"] >= 100
    assert outcomes["completed event"] >= 5


@pytest.mark.acceptance
def test_many_generated_payloads_get_images_or_a_code(tmp_path):
    outcomes = run_generated(10_000, tmp_path)
    for outcome, count in outcomes.most_common():
        print(f"{outcome:20} {count:6}")
    assert outcomes["images"] >= 500
    wanted = ("invalid_settings", "completed event", "failed event", "dead letters")
    assert all(outcomes[each] >= 20 for each in wanted)
