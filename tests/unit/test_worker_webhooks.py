"""Messages of webhooks: ids, size, signatures, and what is tried again. The client is a fake."""

import asyncio
import base64
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr
from support.factories import OFFER, make_job, make_settings

from pixpod.bootstrap import build_worker
from pixpod.contract.payload import parse_job
from pixpod.contract.webhooks import WebhookOptions, find_webhook
from pixpod.errors import FetchFailed, FetchUnavailable, InvalidInput, InvalidSettings, UrlRefused
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Targets, Use
from pixpod.job import WebhookEvent
from pixpod.outputs.keys import JobKeys
from pixpod.serving.job_events import JobEvents
from pixpod.serving.messages import MAX_BODY_BYTES, make_message
from pixpod.serving.webhooks import Webhooks

URL = "https://app.example/hook?token=pomegranate"
TARGET = Targets().parse(URL, Use.WEBHOOK)
NOW = datetime(2021, 2, 25, 15, 2, 10, tzinfo=UTC)
SECRET = SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
OTHER = SecretStr("whsec_" + base64.b64encode(b"another secret, of 31 bytes....").decode())
SIGNING = replace(OFFER, signs_webhooks=True)
KEYS = JobKeys(prefix="live", key_prefix="", job_name="job-1", secret=SecretStr("hidden"))


class FakeAnswer:
    def __init__(self, status):
        self.status = status


class FakeClient:
    """Answers with each of `outcomes` in turn, the last for ever: a status, or what it raises."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.sent = []

    async def write(self, method, target, body, headers, *, total_s):
        self.sent.append((method, target, json.loads(body), headers, total_s))
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return FakeAnswer(outcome)

    def close(self):
        pass


def message(event=WebhookEvent.COMPLETED, data=None, job_id="job-1", **changes):
    named = {"job_name": job_id, "timestamp": NOW} | changes
    return make_message(job_id, event, data or {}, **named)


def webhooks(client, *secrets):
    return Webhooks(
        client=client, secrets=secrets or (SECRET,), now=lambda: NOW, retry_wait_s=0.001
    )


def send(client, *secrets, event=WebhookEvent.COMPLETED):
    async def run():
        return await webhooks(client, *secrets).start(message(event), TARGET, KEYS)

    return asyncio.run(run())


# --- messages --------------------------------------------------------------------------------


def test_ids_repeat_for_the_same_event_and_differ_for_others():
    others = [
        message(WebhookEvent.PROGRESS, step=0),
        message(WebhookEvent.PROGRESS, step=1),
        message(WebhookEvent.STARTED),
        message(WebhookEvent.CANCELLED),
        message(job_id="job-2"),
        message(job_id='job-1", "completed'),
    ]
    assert len({each.id for each in (message(), *others)}) == 7
    later = message(data={"steps": 2}, timestamp=datetime.now(UTC))
    assert later.id == message().id
    assert message(job_id="job-9", job_name="job-1").id == message().id


def test_body_is_an_event_of_standard_webhooks():
    assert json.loads(message(data={"steps": 3}).body) == {
        "type": "completed",
        "timestamp": "2021-02-25T15:02:10+00:00",
        "data": {"job_id": "job-1", "steps": 3},
    }


def test_inline_data_is_left_out():
    images = [{"seed": 1, "data": "A" * 100_000}, {"seed": 2, "url": "https://x/"}]
    controls = [{"index": 0, "data": "B" * 100_000}]
    data = json.loads(message(data={"images": images, "controls": controls}).body)["data"]
    assert data["images"] == [{"seed": 1}, {"seed": 2, "url": "https://x/"}]
    assert data["controls"] == [{"index": 0}]
    assert images[0]["data"]


@pytest.mark.parametrize(("num_more", "is_left_out"), [(0, False), (1, True)])
def test_body_has_a_limit(num_more, is_left_out):
    empty = len(message(data={"error": ""}).body)
    made = message(data={"error": "x" * (MAX_BODY_BYTES - empty + num_more)})
    assert len(made.body) <= MAX_BODY_BYTES
    left_out = {"job_id": "job-1", "is_left_out": True}
    assert (json.loads(made.body)["data"] == left_out) is is_left_out


# --- signatures ------------------------------------------------------------------------------


def test_signature_is_that_of_the_reference_library():
    """Its vector has a body of its own; the headers are those of the same secret and time."""
    client = FakeClient(200)
    vector = replace(message(), id="msg_p5jXN8AQM9LWM0D4loKWxJek", body='{"test": 2432232314}')

    async def run():
        at = datetime.fromtimestamp(1614265330, UTC)
        sender = Webhooks(client=client, secrets=(SECRET,), now=lambda: at)
        return await sender.start(vector, TARGET, KEYS)

    assert asyncio.run(run()) is None
    ((_, _, _, headers, _),) = client.sent
    assert headers == {
        "content-type": "application/json",
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_two_secrets_give_two_signatures():
    signatures = []
    for secrets in ((SECRET,), (OTHER,), (OTHER, SECRET)):
        client = FakeClient(200)
        send(client, *secrets)
        signatures.append(client.sent[0][3]["webhook-signature"])
    first, second, both = signatures
    assert first != second
    assert both == f"{second} {first}"


# --- tries -----------------------------------------------------------------------------------

UNAVAILABLE = Refused(FetchUnavailable, "a host that answers completely", value="app.example")


@pytest.mark.parametrize(
    ("outcomes", "num_tries", "failure"),
    [
        ([200], 1, None),
        ([204], 1, None),
        ([299], 1, None),
        ([500, 200], 2, None),
        ([UNAVAILABLE, 202], 2, None),
        ([503], 2, "HTTP status 503"),
        ([UNAVAILABLE], 2, "expected a host that answers completely"),
        ([UNAVAILABLE, 404], 2, "HTTP status 404"),
        ([301], 1, "HTTP status 301"),
        ([307], 1, "HTTP status 307"),
        ([400], 1, "HTTP status 400"),
        ([410], 1, "HTTP status 410"),
        ([413], 1, "HTTP status 413"),
        ([429], 1, "HTTP status 429"),
        ([Refused(UrlRefused, "a host with public addresses")], 1, "expected a host with public"),
        ([Refused(FetchFailed, "a host with a valid certificate")], 1, "expected a host with a v"),
    ],
)
def test_only_what_may_succeed_is_tried_again(outcomes, num_tries, failure, caplog):
    client = FakeClient(*outcomes)
    found = send(client)
    assert len(client.sent) == num_tries
    assert (found or "").startswith(failure or "") and (found is None) is (failure is None)
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == (failure is not None)
    assert "pomegranate" not in caplog.text + str([vars(each) for each in warnings])
    assert all(each[0] == "POST" and each[1] == TARGET for each in client.sent)


def test_final_tries_take_five_seconds_at_most():
    sender = Webhooks(client=FakeClient(200), secrets=(SECRET,))
    assert 2 * sender.try_s + sender.retry_wait_s <= 5


@pytest.mark.parametrize("event", WebhookEvent)
def test_only_final_events_are_tried_again(event):
    client = FakeClient(500)
    assert send(client, event=event) == "HTTP status 500"
    is_final = event in ("completed", "failed", "cancelled")
    assert len(client.sent) == (2 if is_final else 1)


def test_unexpected_error_of_the_client_harms_no_job(caplog):
    options = WebhookOptions(target=TARGET, events=frozenset(WebhookEvent))

    async def run():
        sender = webhooks(FakeClient(RuntimeError("unforeseen")))
        events = JobEvents(job_id="job-1", keys=KEYS, webhooks=sender, options=options)
        events.started()
        reply = {"warnings": ["first"]}
        await events.ended(reply)
        await sender.close()
        return reply

    warning = "the webhook for completed was not delivered: an unexpected error"
    assert asyncio.run(run()) == {"warnings": ["first", warning]}
    assert caplog.text.count("webhook failed unexpectedly") == 2


# --- the payload -----------------------------------------------------------------------------


def test_last_three_events_unless_given():
    found = find_webhook(make_job(webhook_url=URL), SIGNING)
    assert found is not None
    assert found.target == TARGET
    assert found.events == {"completed", "failed", "cancelled"}
    chosen = find_webhook(make_job(webhook_url=URL, webhook_events=["started", "started"]), SIGNING)
    assert chosen is not None
    assert chosen.events == {"started"}


def test_webhook_of_a_refused_job_is_found():
    assert find_webhook(make_job(webhook_url=URL, width="wide", flavour=1), SIGNING) is not None


@pytest.mark.parametrize(
    "job",
    [
        make_job(),
        make_job(webhook_url=None),
        make_job(webhook_url=7),
        make_job(webhook_url="http://app.example/"),
        make_job(webhook_url="https://127.0.0.1/"),
        make_job(webhook_url=URL, webhook_events=["ended"]),
        make_job(webhook_url=URL) | {"id": 7},
        make_job(webhook_url=URL) | {"id": "\ud800"},
        {"id": "job-1"},
        {"id": "job-1", "input": []},
    ],
)
def test_webhook_that_cannot_be_used_is_not_found(job):
    assert find_webhook(job, SIGNING) is None


def test_deployment_without_secrets_refuses_webhooks():
    job = make_job(webhook_url=URL)
    assert find_webhook(job, OFFER) is None
    with pytest.raises(InvalidSettings, match="PIXPOD_WEBHOOK_SECRETS: expected one or two"):
        parse_job(job, OFFER)
    with pytest.raises(InvalidInput):  # the caller's own faults come first
        parse_job(make_job(webhook_url=URL, safety=1), OFFER)
    assert parse_job(job, SIGNING).id == "job-1"


# --- wiring ----------------------------------------------------------------------------------


def test_worker_is_wired_by_its_settings():
    opened = {"PIXPOD_ALLOW_TARGETS": "webhook:127.0.0.1:5000"}
    job = make_job(webhook_url="http://127.0.0.1:5000/")
    both = f"{OTHER.get_secret_value()},{SECRET.get_secret_value()}"
    worker = build_worker(make_settings(PIXPOD_WEBHOOK_SECRETS=both, **opened))
    assert worker.webhooks is not None
    assert worker.webhooks.secrets == (OTHER, SECRET)
    assert find_webhook(job, worker.capabilities) is not None
    without = build_worker(make_settings(**opened))
    assert without.webhooks is None
    assert find_webhook(job, without.capabilities) is None
