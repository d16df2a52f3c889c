"""`verify` takes what the reference library signs, and refuses everything else with one error.

Vectors: standard-webhooks, libraries/python/tests/test_webhooks.py.
"""

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies
from standardwebhooks import Webhook

from pixpod_client import WEBHOOK_WINDOW_S, WebhookRefused, verify

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"another secret, of 31 bytes....").decode()
VECTOR_BODY = '{"test": 2432232314}'
VECTOR_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
BODY = json.dumps(
    {"type": "completed", "timestamp": "2026-01-02T03:04:05+00:00", "data": {"job_id": "job-1"}}
)


def signature(body, sent_at, secret=SECRET, webhook_id=VECTOR_ID):
    """By the words of the specification, without the library."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    data = body if isinstance(body, bytes) else body.encode()
    digest = hmac.digest(key, f"{webhook_id}.{sent_at}.".encode() + data, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def signed(body=BODY, *, secret=SECRET, age_s=0, **changes):
    sent_at = int(time.time()) - age_s
    headers = {
        "webhook-id": VECTOR_ID,
        "webhook-timestamp": str(sent_at),
        "webhook-signature": signature(body, sent_at, secret),
    }
    return headers | {name.replace("_", "-"): value for name, value in changes.items()}


def test_vector_of_the_reference_library():
    sent_at = datetime.fromtimestamp(1614265330, UTC)
    known = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert Webhook(SECRET).sign(VECTOR_ID, sent_at, VECTOR_BODY) == known
    assert signature(VECTOR_BODY, 1614265330) == known


def test_event():
    event = verify(BODY.encode(), signed(), SECRET)
    assert (event.id, event.type, event.data) == (VECTOR_ID, "completed", {"job_id": "job-1"})
    assert event.timestamp == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert "job-1" not in repr(event)


@pytest.mark.parametrize("body", [BODY, BODY.encode()])
def test_body_may_be_text_or_bytes(body):
    assert verify(body, signed(), SECRET).type == "completed"


def test_names_of_headers_in_any_case_and_secret_without_prefix():
    headers = {name.title(): value for name, value in signed().items()}
    assert verify(BODY, headers, SECRET.removeprefix("whsec_")).type == "completed"


def test_secret_without_padding():
    assert OTHER.endswith("=")
    assert verify(BODY, signed(secret=OTHER), OTHER.rstrip("=")).type == "completed"


def test_either_of_two_secrets_during_a_rotation():
    for secret in (SECRET, OTHER):
        assert verify(BODY, signed(secret=secret), [OTHER, SECRET]).type == "completed"
    with pytest.raises(WebhookRefused, match="signature"):
        verify(BODY, signed(secret=SECRET), [OTHER])


@pytest.mark.parametrize(
    "others",
    ["v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc= {}", "v2,x  {}", "{} v1a,b,c", "x {}"],
)
def test_one_good_signature_among_others(others):
    headers = signed()
    headers["webhook-signature"] = others.format(headers["webhook-signature"])
    assert verify(BODY, headers, SECRET).type == "completed"


@pytest.mark.parametrize("age_s", [WEBHOOK_WINDOW_S - 10, 10 - WEBHOOK_WINDOW_S])
def test_window_of_five_minutes(age_s):
    assert verify(BODY, signed(age_s=age_s), SECRET).type == "completed"


@pytest.mark.parametrize("age_s", [WEBHOOK_WINDOW_S + 10, -WEBHOOK_WINDOW_S - 10])
def test_replay_is_refused(age_s):
    with pytest.raises(WebhookRefused):
        verify(BODY, signed(age_s=age_s), SECRET)


BAD_HEADERS = {
    "no headers": {},
    "no id": {**signed(), "webhook-id": ""},
    "id with a space": signed(webhook_id="a b"),
    "another id": signed(webhook_id="msg_other"),
    "timestamp is no number": signed(webhook_timestamp="hello"),
    "timestamp is nan": signed(webhook_timestamp="nan"),
    "timestamp out of range": signed(webhook_timestamp="9" * 12),
    "timestamp in other digits": signed(webhook_timestamp="١٢٣"),
    "timestamp of another second": signed(webhook_timestamp=str(int(time.time()) - 5)),
    "no signature": signed(webhook_signature=""),
    "signature without a version": signed(webhook_signature="abc"),
    "signature with two commas": signed(webhook_signature="v1,a,b"),
    "signature is no base64": signed(webhook_signature="v1,$$$"),
    "signature of wrong padding": signed(webhook_signature="v1,abc"),
    "signature is no ASCII": signed(webhook_signature="v1,äöü"),
    "double space": signed(webhook_signature="v1,a  v1,b"),
    "another secret": signed(secret=OTHER),
    "value is None": signed(webhook_signature=None),
}


@pytest.mark.parametrize("headers", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_bad_headers_are_refused(headers):
    with pytest.raises(WebhookRefused):
        verify(BODY, headers, SECRET)


BAD_BODIES = {
    "another body": (BODY + " ", signed()),
    "no UTF-8": (b"\xff\xfe", signed(b"\xff\xfe")),
    "half a surrogate pair": ("\ud800", signed("")),
    **{
        text[:12]: (text, signed(text))
        for text in (
            "",
            "no JSON",
            "[]",
            "1",
            "{}",
            "[" * 100_000,
            '{"type": 1, "timestamp": "2026-01-02T03:04:05+00:00", "data": {}}',
            '{"timestamp": "2026-01-02T03:04:05", "type": "a", "data": {}}',
            '{"data": [], "type": "a", "timestamp": "2026-01-02T03:04:05+00:00"}',
            VECTOR_BODY,
        )
    },
}


@pytest.mark.parametrize(("body", "headers"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_bad_bodies_are_refused(body, headers):
    with pytest.raises(WebhookRefused):
        verify(body, headers, SECRET)


TEXTS = strategies.text(max_size=60) | strategies.sampled_from(
    ["v1,", " ", ",", "1" * 10, "v1," + "A" * 43 + "=", str(int(time.time()))]
)


@given(strategies.binary(max_size=60), TEXTS, TEXTS, TEXTS)
def test_nothing_foreign_is_raised(body, webhook_id, timestamp, signature):
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    with pytest.raises(WebhookRefused):
        verify(body, dict(zip(names, (webhook_id, timestamp, signature), strict=True)), SECRET)


@pytest.mark.parametrize("secrets", [[], "", "whsec_$$$", "whsec_YWJj", "ä", [SECRET, "x" * 200]])
def test_secrets_that_cannot_be_used_are_a_fault_of_the_receiver(secrets):
    with pytest.raises(ValueError, match="secrets: expected"):
        verify(BODY, signed(), secrets)


def test_window_is_that_of_the_library():
    sent_at = datetime.now(UTC) - timedelta(seconds=WEBHOOK_WINDOW_S + 2)
    headers = {
        "webhook-id": "a",
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("a", sent_at, BODY),
    }
    with pytest.raises(WebhookRefused):
        verify(BODY, headers, SECRET)
