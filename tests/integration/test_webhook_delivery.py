"""Events of jobs on their way to a receiver of this machine, through the guarded client."""

import asyncio
import time
from itertools import pairwise

import pytest
from support.factories import make_job
from support.fake_internet import local_server
from support.webhooks import (
    INLINE,
    OTHER,
    SECRET,
    TRY_S,
    Receiver,
    url_of,
    warnings_of,
    worker_of,
)

from pixpod.errors import OutOfMemory
from pixpod.testing.fake_engine import FakeEngine
from pixpod.testing.memory_bucket import MemoryBucket


def run(receiver, engine=None, *, secrets=(SECRET,), **input):
    """Return the reply of one job, once all its events were sent."""

    async def serve():
        async with local_server(receiver) as port:
            async with worker_of(port, engine, secrets=secrets) as worker:
                job = make_job(webhook_url=url_of(port), output=INLINE, **input)
                reply = await worker.handle(job)
            return reply

    return asyncio.run(serve())


def test_completed_job_is_sent_signed_and_without_inline_data():
    receiver = Receiver()
    reply = run(receiver, seed=7)
    (event,) = receiver.events
    assert (event.type, receiver.paths) == ("completed", ["/hook"])
    (image,) = reply["images"]
    sent = {key: value for key, value in image.items() if key != "data"}
    assert event.data == {**reply, "job_id": "job-1", "images": [sent]}
    assert image["data"]
    assert warnings_of(reply) == []


@pytest.mark.parametrize("secrets", [(SECRET,), (OTHER,)])
def test_receivers_of_both_secrets_verify_during_a_rotation(secrets):
    receiver = Receiver(secrets=secrets)
    run(receiver, secrets=(OTHER, SECRET))
    assert receiver.types == ["completed"]


def test_failed_and_refused_jobs_are_sent():
    receiver = Receiver()
    reply = run(receiver, FakeEngine(fail_with=OutOfMemory("full")))
    assert [(event.type, event.data) for event in receiver.events] == [
        ("failed", {"job_id": "job-1", "error": "out_of_memory: full"})
    ]
    assert reply["refresh_worker"]
    refused = Receiver()
    reply = run(refused, width=7, flavour="salt")
    assert reply["error"].startswith("invalid_input: ")
    assert [event.data for event in refused.events] == [{"job_id": "job-1", **reply}]


def test_all_events_in_the_order_of_a_job():
    receiver = Receiver()
    events = ["started", "progress", "completed", "failed", "cancelled"]
    run(receiver, FakeEngine(seconds=3.6), num_inference_steps=10, webhook_events=events)
    assert receiver.types == ["started", *["progress"] * (len(receiver.types) - 2), "completed"]
    progress = receiver.events[1:-1]
    assert len(progress) >= 2
    assert len({event.id for event in receiver.events}) == len(receiver.events)
    steps = [event.data["step"] for event in progress]
    assert steps == sorted(set(steps))
    assert progress[0].data.keys() == {"job_id", "phase", "step", "steps", "percent"}
    times = [event.timestamp for event in progress]
    assert all((after - before).total_seconds() >= 0.9 for before, after in pairwise(times))


def test_only_chosen_events_are_sent():
    receiver = Receiver()
    run(receiver, webhook_events=["started"])
    assert receiver.types == ["started"]


def test_repeated_execution_repeats_the_id():
    receiver = Receiver()
    run(receiver)
    run(receiver)
    first, second = receiver.events
    assert first.id == second.id


def test_jobs_with_one_idempotency_key_have_one_id_and_one_dead_letter():
    receiver, bucket = Receiver([410]), MemoryBucket()

    async def serve():
        async with (
            local_server(receiver) as port,
            worker_of(port, letters=bucket, bucket=bucket) as worker,
        ):
            given = {"idempotency_key": "order-7", "output": {"key_prefix": "shop"}}
            job = make_job(webhook_url=url_of(port), **given)
            return [await worker.handle(job | {"id": name}) for name in ("a", "b")]

    replies = asyncio.run(serve())
    first, second = receiver.events
    assert first.id == second.id
    assert (first.data["job_id"], second.data["job_id"]) == ("a", "b")
    (letter,) = [key for key in bucket.files if key.endswith(".dead-letter")]
    folder, _, _ = replies[0]["images"][0]["key"].rpartition("/")
    assert letter.startswith(f"{folder}/")
    assert letter.startswith("live/shop/key-")


def test_cancelled_job_is_over_before_its_event_is_answered():
    receiver = Receiver()

    async def serve():
        receiver.gate = asyncio.Event()
        engine = FakeEngine(seconds=60)
        async with local_server(receiver) as port, worker_of(port, engine, try_s=60) as worker:
            job = make_job(webhook_url=url_of(port), output=INLINE)
            task = asyncio.create_task(worker.handle(job))
            while not engine.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            receiver.gate.set()

    asyncio.run(serve())
    assert [(event.type, event.data) for event in receiver.events] == [
        ("cancelled", {"job_id": "job-1"})
    ]


# --- receivers that do not take it -----------------------------------------------------------


@pytest.mark.parametrize("status", [301, 307, 400, 410, 413, 429])
def test_refusal_and_redirect_are_not_tried_again(status):
    receiver = Receiver([status])
    reply = run(receiver)
    assert receiver.paths == ["/hook"]
    warning = f"the webhook for completed was not delivered: HTTP status {status}"
    assert warnings_of(reply) == [warning]
    assert len(reply["images"]) == 1


def test_receiver_that_is_broken_for_a_moment_gets_the_same_event_again():
    receiver = Receiver([500, 204])
    reply = run(receiver)
    first, second = receiver.events
    assert first == second
    assert warnings_of(reply) == []


def test_receiver_that_stays_broken():
    receiver = Receiver([503])
    reply = run(receiver)
    assert receiver.types == ["completed"] * 2
    assert warnings_of(reply) == ["the webhook for completed was not delivered: HTTP status 503"]


def test_slow_receiver_delays_the_reply_by_two_tries_only():
    receiver = Receiver(seconds=60)
    began = time.monotonic()
    reply = run(receiver, webhook_events=["started", "completed"])
    assert time.monotonic() - began < 2 * TRY_S + 3
    assert sorted(receiver.types) == ["completed", "completed", "started"]
    (warning,) = warnings_of(reply)
    assert warning.endswith(f"expected a complete answer within {TRY_S} s")


def test_started_event_is_not_waited_for():
    receiver = Receiver()

    async def serve():
        receiver.gate = asyncio.Event()
        async with local_server(receiver) as port, worker_of(port, try_s=60) as worker:
            url = url_of(port)
            job = make_job(webhook_url=url, webhook_events=["started"], output=INLINE)
            reply = await worker.handle(job)
            receiver.gate.set()
        return reply

    assert warnings_of(asyncio.run(serve())) == []
    assert receiver.types == ["started"]


def test_receiver_that_is_down():
    async def serve():
        async with local_server(Receiver()) as port:
            pass
        async with worker_of(port) as worker:
            return await worker.handle(make_job(webhook_url=url_of(port), output=INLINE))

    reply = asyncio.run(serve())
    assert warnings_of(reply) == [
        "the webhook for completed was not delivered: expected a host that answers completely"
    ]
    assert len(reply["images"]) == 1


def test_receiver_that_is_not_opened_gets_nothing():
    receiver = Receiver()

    async def serve():
        async with local_server(receiver) as port, worker_of(port + 1) as worker:
            return await worker.handle(make_job(webhook_url=url_of(port), output=INLINE))

    reply = asyncio.run(serve())
    assert reply["error"].startswith("invalid_input: ")
    assert "webhook_url" in reply["error"] and "pomegranate" not in reply["error"]
    assert receiver.paths == []
