"""Dead letters: what can be read in them, who can open them, and when they are written."""

import asyncio
import base64
import hashlib
import hmac
import json
import re
from dataclasses import replace

import pytest
from cryptography.fernet import Fernet
from support.factories import make_job, make_settings
from unit.test_worker_webhooks import KEYS, NOW, OTHER, SECRET, TARGET, URL, FakeClient, message

from pixpod.bootstrap import build_worker
from pixpod.contract.webhooks import WebhookOptions
from pixpod.errors import StorageDenied, StorageUnavailable
from pixpod.job import WebhookEvent
from pixpod.outputs.dead_letter import MAX_LETTER_BYTES, DeadLetter, open_letter, seal_letter
from pixpod.outputs.s3_storage import S3ImageStore
from pixpod.outputs.storage import DirectoryImageStore
from pixpod.serving.dead_letters import DeadLetters
from pixpod.serving.job_events import JobEvents
from pixpod.serving.replies import BulkyReply
from pixpod.serving.webhooks import Webhooks
from pixpod.testing.memory_bucket import MemoryBucket

KEY = "live/job-1/0123.dead-letter"
LETTER = DeadLetter(
    job_id="job-1",
    event=WebhookEvent.COMPLETED,
    webhook_id="msg_1",
    timestamp=NOW,
    url=URL,
    body='{"data": {"url": "https://bucket/1.png?X-Amz-Signature=mulberry"}}',
)


def seal(letter=LETTER, *secrets, key=KEY):
    return seal_letter(letter, key=key, reason="HTTP status 503", secrets=secrets or (SECRET,))


# --- the file --------------------------------------------------------------------------------


def test_host_and_path_are_in_the_clear_and_nothing_else_of_the_url_or_body():
    content = json.loads(seal())
    assert content.pop("sealed")
    assert content == {
        "host": "app.example",
        "path": "/hook",
        "job_id": "job-1",
        "event": "completed",
        "webhook_id": "msg_1",
        "timestamp": "2021-02-25T15:02:10Z",
        "reason": "HTTP status 503",
    }
    assert not [word for word in (b"pomegranate", b"mulberry", b"token") if word in seal()]
    assert "pomegranate" not in repr(LETTER) and "mulberry" not in repr(LETTER)


def test_letter_is_opened_as_it_was_sealed():
    assert open_letter(seal(), key=KEY, secrets=(SECRET,)) == LETTER


def test_first_secret_seals_and_both_open():
    data = seal(LETTER, OTHER, SECRET)
    assert open_letter(data, key=KEY, secrets=(OTHER,)) == LETTER
    assert open_letter(data, key=KEY, secrets=(SECRET, OTHER)) == LETTER
    with pytest.raises(ValueError, match="expected a seal by one of PIXPOD_WEBHOOK_SECRETS"):
        open_letter(data, key=KEY, secrets=(SECRET,))


def test_letter_is_sealed_as_the_documentation_says():
    """A new release must open what the last one wrote."""
    key = hmac.digest(SECRET.get_secret_value().encode(), b"dead letters", hashlib.sha256)
    fernet = Fernet(base64.urlsafe_b64encode(key))
    file = json.loads(seal())
    assert json.loads(fernet.decrypt(file["sealed"])) == {
        "key": KEY,
        "letter": {
            "job_id": "job-1",
            "event": "completed",
            "webhook_id": "msg_1",
            "timestamp": "2021-02-25T15:02:10Z",
            "url": URL,
            "body": LETTER.body,
        },
    }


def test_whole_letter_of_the_longest_url_and_body_can_be_read():
    longest = LETTER.model_copy(
        update={"url": "https://app.example/?" + "%F0%9F%8D%8F" * 8_170, "body": '"' * 20_000}
    )
    data = seal(longest)
    assert len(data) < MAX_LETTER_BYTES
    assert open_letter(data, key=KEY, secrets=(SECRET,)) == longest


def changed(**changes):
    return json.dumps(json.loads(seal()) | changes).encode()


FORGED = {
    "a copy under another key": seal(key="live/job-2/0123.dead-letter"),
    "cut": seal()[:-20],
    "empty": b"",
    "no UTF-8": b"\xff",
    "another form": b"[]",
    "no token": changed(sealed="$"),
    "half a surrogate pair": seal().replace(b"gAAAA", rb"\ud800"),
    "a field more": changed(url="https://app.example/"),
    "too large": seal() + b" " * MAX_LETTER_BYTES,
    "another content": changed(sealed=Fernet(Fernet.generate_key()).encrypt(b"{}").decode()),
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED)
def test_what_is_no_letter_of_this_key_is_refused(data):
    with pytest.raises(ValueError, match=r"^expected ") as caught:
        open_letter(data, key=KEY, secrets=(SECRET, OTHER))
    assert "pomegranate" not in str(caught.value)


def test_what_is_in_the_clear_is_not_read():
    data = changed(host="evil.example", path="/", event="failed", webhook_id="msg_2")
    assert open_letter(data, key=KEY, secrets=(SECRET,)) == LETTER


# --- keys ------------------------------------------------------------------------------------


def test_each_end_of_a_job_has_one_key_in_its_folder():
    keys = [KEYS.letter_key(event) for event in WebhookEvent if event.is_final]
    assert len(set(keys)) == 3
    assert keys[0] == KEYS.letter_key(WebhookEvent.COMPLETED)
    assert all(re.fullmatch(r"live/job-1/[0-9a-f]{32}\.dead-letter", key) for key in keys)
    assert replace(KEYS, job_name="job-2").letter_key(WebhookEvent.FAILED) not in keys


# --- writing them ----------------------------------------------------------------------------


class FailingBucket(MemoryBucket):
    """Raises each of `errors` in turn, then works."""

    def __init__(self, *errors):
        super().__init__()
        self.errors = list(errors)

    async def put_file(self, data, key):
        if self.errors:
            raise self.errors.pop(0)
        await super().put_file(data, key)


def letters_in(store, **changes):
    return DeadLetters(store=store, secrets=(SECRET,), retry_wait_s=0.001, **changes)


def keep(store, **changes):
    return asyncio.run(letters_in(store, **changes).keep(LETTER, key=KEY, reason="none"))


def test_bucket_that_is_down_for_a_moment_gets_the_letter():
    bucket = FailingBucket(StorageUnavailable("down"), StorageUnavailable("down"))
    assert keep(bucket)
    assert open_letter(bucket.files[KEY], key=KEY, secrets=(SECRET,)) == LETTER


@pytest.mark.parametrize(
    ("bucket", "limit_s"),
    [
        (MemoryBucket(fail_with=StorageUnavailable("down")), 0.05),
        (MemoryBucket(fail_with=StorageDenied("no right")), 60),
        (MemoryBucket(seconds=60), 0.05),
    ],
    ids=["down", "denied", "slow"],
)
def test_letter_that_cannot_be_written_is_an_error_in_the_log(bucket, limit_s, caplog):
    assert not keep(bucket, limit_s=limit_s)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("ERROR", "dead letter not written")
    assert "pomegranate" not in caplog.text


# --- when they are written -------------------------------------------------------------------


def events_with(client, bucket, events=tuple(WebhookEvent)):
    sender = Webhooks(
        client=client,
        secrets=(SECRET,),
        letters=bucket and letters_in(bucket),
        now=lambda: NOW,
        retry_wait_s=0.001,
    )
    options = WebhookOptions(target=TARGET, events=frozenset(events))
    return JobEvents(job_id="job-1", keys=KEYS, webhooks=sender, options=options)


def end(client, bucket, reply, **changes):
    """Let a job end, and return its letters."""

    async def run():
        events = events_with(client, bucket, **changes)
        events.started()
        await events.ended(reply)
        await events.webhooks.close()

    asyncio.run(run())
    files = bucket.files if bucket else {}
    return [open_letter(data, key=key, secrets=(SECRET,)) for key, data in files.items()]


@pytest.mark.parametrize(
    ("outcome", "reason"), [(503, "HTTP status 503"), (410, "HTTP status 410")]
)
def test_end_that_is_not_delivered_is_kept_and_the_reply_has_a_warning(outcome, reason):
    client, bucket, reply = FakeClient(outcome), MemoryBucket(), {"warnings": ["first"]}
    (letter,) = end(client, bucket, reply)
    _, _, body, headers, _ = client.sent[-1]
    assert (letter.job_id, letter.event, letter.url) == ("job-1", "completed", URL)
    assert (letter.webhook_id, letter.timestamp) == (headers["webhook-id"], NOW)
    assert json.loads(letter.body) == body == json.loads(message(data={"warnings": ["first"]}).body)
    warning = f"the webhook for completed was not delivered: {reason}; it is kept as a dead letter"
    assert reply == {"warnings": ["first", warning]}


def test_repeated_execution_overwrites_its_letter():
    bucket = MemoryBucket()
    for _ in range(2):
        end(FakeClient(410), bucket, {"error": "out_of_memory: full"})
    assert list(bucket.files) == [KEYS.letter_key(WebhookEvent.FAILED)]


def test_nothing_is_kept_of_what_is_delivered_or_interim():
    assert end(FakeClient(200), MemoryBucket(), {"warnings": []}) == []
    assert end(FakeClient(500, 200), MemoryBucket(), {"warnings": []}) == []
    assert end(FakeClient(500), MemoryBucket(), {"warnings": []}, events=["started"]) == []


def test_unexpected_error_leaves_a_letter():
    (letter,) = end(FakeClient(RuntimeError("unforeseen")), MemoryBucket(), {"warnings": []})
    assert letter.event == "completed"


@pytest.mark.parametrize(
    ("bucket", "end_of_warning"),
    [
        (None, "HTTP status 410"),
        (
            MemoryBucket(fail_with=StorageDenied("no right")),
            "HTTP status 410; it could not be kept as a dead letter",
        ),
    ],
)
def test_warning_says_if_there_is_no_letter(bucket, end_of_warning):
    reply: dict = {"warnings": []}
    assert end(FakeClient(410), bucket, reply) == []
    assert reply["warnings"] == [f"the webhook for completed was not delivered: {end_of_warning}"]


def test_reply_that_may_be_too_large_stays_one_that_can_be_made_smaller():
    async def shrink():
        return {}

    reply = BulkyReply({"warnings": []}, shrink)
    end(FakeClient(410), MemoryBucket(), reply)
    assert len(reply["warnings"]) == 1


def test_cancelled_job_leaves_a_letter_in_the_background():
    bucket = MemoryBucket()

    async def run():
        events = events_with(FakeClient(503), bucket)
        events.cancelled()
        await events.webhooks.settle()

    asyncio.run(run())
    assert list(bucket.files) == [KEYS.letter_key(WebhookEvent.CANCELLED)]


def test_end_of_the_process_waits_for_ends_of_jobs_only():
    class SlowClient(FakeClient):
        async def write(self, method, target, body, headers, *, total_s):
            await asyncio.sleep(60 if json.loads(body)["type"] == "started" else 0.05)
            return await super().write(method, target, body, headers, total_s=total_s)

    client = SlowClient(200)

    async def run():
        events = events_with(client, None)
        events.started()
        events.cancelled()
        await asyncio.wait_for(events.webhooks.settle(), 10)

    asyncio.run(run())
    assert [body["type"] for _, _, body, _, _ in client.sent] == ["cancelled"]


# --- where -----------------------------------------------------------------------------------

SECRETS = {"PIXPOD_WEBHOOK_SECRETS": f"{OTHER.get_secret_value()},{SECRET.get_secret_value()}"}
PLATFORM = {"RUNPOD_WEBHOOK_GET_JOB": "https://platform.example/"}
BUCKET = {
    "PIXPOD_S3_BUCKET": "images",
    "PIXPOD_S3_ACCESS_KEY_ID": "id",
    "PIXPOD_S3_SECRET_ACCESS_KEY": "secret",
}


@pytest.mark.parametrize(
    ("env", "store"),
    [
        (PLATFORM, None),
        (PLATFORM | {"PIXPOD_OUTPUT_DIR": "out"}, DirectoryImageStore),
        (PLATFORM | BUCKET, S3ImageStore),
        (PLATFORM | BUCKET | {"PIXPOD_DELIVERY": "inline"}, S3ImageStore),
        (BUCKET | {"PIXPOD_DELIVERY": "directory"}, DirectoryImageStore),
        ({}, DirectoryImageStore),
    ],
)
def test_letters_are_where_the_deployment_keeps_images(env, store):
    worker = build_worker(make_settings(**SECRETS, **env))
    assert worker.webhooks is not None
    letters = worker.webhooks.letters
    assert type(letters and letters.store) is (store or type(None))
    assert letters is None or letters.secrets == worker.webhooks.secrets


def test_letter_is_in_the_folder_of_the_images(tmp_path):
    """A job that is refused has no other name than its id, and no prefix of its own."""
    env = {"PIXPOD_OUTPUT_DIR": str(tmp_path), "PIXPOD_ALLOW_TARGETS": "webhook:127.0.0.1:1"}
    worker = build_worker(make_settings(**SECRETS, **env))
    assert worker.webhooks is not None
    worker.webhooks.retry_wait_s = 0.001
    job = make_job(webhook_url="http://127.0.0.1:1/hook", width=1)
    assert "error" in asyncio.run(worker.handle(job))
    (path,) = tmp_path.rglob("*.dead-letter")
    assert path.parent == tmp_path / "job-1"
