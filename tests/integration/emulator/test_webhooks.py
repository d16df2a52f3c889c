"""Webhooks against real receivers: what counts as delivered, what is tried again, what survives."""

import asyncio
import functools
import json
import logging
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.jobs import lifecycle
from runpod_emulator.jobs.job import Job, JobStatus, Policy, Webhook
from runpod_emulator.jobs.sqlite_store import SqliteStore
from runpod_emulator.jobs.store import StoreUnusable
from runpod_emulator.jobs.webhooks import MAX_SENDS_PER_RECEIVER, WebhookSender

BEHAVIOUR = Behaviour(webhook_retry_interval_s=0.05, webhook_timeout_s=5.0)
ONE_ATTEMPT = replace(BEHAVIOUR, webhook_retries=0)
DEADLINE_S = 10.0
SOURCE = str(Path(__file__).parents[3] / "src")

SENDER_PROGRAM = """
import asyncio, sys, time
from pathlib import Path
from runpod_emulator.jobs import lifecycle
from runpod_emulator.behaviour import Behaviour
from runpod_emulator.jobs.sqlite_store import SqliteStore
from runpod_emulator.jobs.webhooks import WebhookSender

async def body(job):
    return b"{}"

async def main():
    behaviour = Behaviour()
    store = SqliteStore(Path(sys.argv[1]), lambda job: lifecycle.due_at(job, behaviour))
    await WebhookSender(store, behaviour, time.time, body, store.remove).run()

asyncio.run(main())
"""


def in_loop(test):
    """Let a test be a coroutine."""

    @functools.wraps(test)
    def run(**fixtures):
        asyncio.run(test(**fixtures))

    return run


async def until(condition):
    """Until `condition`, a function or a coroutine function, holds."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        held = condition()
        if await held if asyncio.iscoroutine(held) else held:
            return
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.01)


class Receiver:
    """Answers with `statuses` one after the other, then 200; holds while `is_open` is unset.

    Instead of the status 0 it closes the connection.
    """

    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.posts = []
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.url = ""

    @property
    def ids(self):
        return [json.loads(body)["id"] for body in self.posts]

    async def receive(self, request):
        assert request.content_type == "application/json"
        self.posts.append(await request.read())
        status = self.statuses.pop(0) if self.statuses else 200
        await self.is_open.wait()
        if status == 0:
            request.transport.close()
        return web.Response(status=status, headers={"Location": self.url + "elsewhere"})


@asynccontextmanager
async def receiving(*statuses):
    receiver = Receiver(*statuses)
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", receiver.receive)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = "http://{}:{}/".format(*runner.addresses[0])
        yield receiver
    finally:
        await runner.cleanup()


@asynccontextmanager
async def store_at(directory, store_type=SqliteStore):
    store = store_type(directory / "jobs.db", lambda job: lifecycle.due_at(job, BEHAVIOUR))
    try:
        yield store
    finally:
        await store.close()


async def id_as_body(job):
    return json.dumps({"id": job.id}).encode()


@asynccontextmanager
async def sending(store, behaviour=BEHAVIOUR, body=id_as_body):
    sender = WebhookSender(store, behaviour, time.time, body, store.remove)
    task = asyncio.create_task(sender.run())
    try:
        yield sender
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait([task])


def failed(job):
    taken = lifecycle.take(job, "w", time.time())
    assert taken is not None
    ended = lifecycle.fail(taken, "w", time.time(), "broken", BEHAVIOUR)
    assert ended is not None
    return ended


def ended_job(url, job_id="j", *, is_hidden=False):
    now = time.time()
    job = Job(
        id=job_id,
        endpoint_id="e",
        is_sync=False,
        policy=Policy(execution_timeout_s=600.0, ttl_s=3600.0),
        created_at=now,
        queued_at=now,
        webhook=Webhook(url=url),
    )
    return replace(failed(lifecycle.submit(job)), is_hidden=is_hidden)


async def settled(store, job_id="j"):
    """The webhook once nothing more is planned for it."""
    settled_webhooks = []

    async def is_settled():
        webhook = (await store.get(job_id)).webhook
        if webhook.next_at is None:
            settled_webhooks.append(webhook)
        return webhook.next_at is None

    await until(is_settled)
    return settled_webhooks[-1]


@in_loop
async def test_the_end_of_a_job_is_posted_once(tmp_path):
    async with receiving() as receiver, store_at(tmp_path) as store:
        await store.add(ended_job(receiver.url), b"{}")
        async with sending(store):
            webhook = await settled(store)
        assert webhook.attempts == 1
        assert webhook.delivered_at is not None
        assert webhook.failure is None
        assert receiver.ids == ["j"]


@in_loop
async def test_a_sleeping_sender_is_woken_by_notify(tmp_path):
    async with receiving() as receiver, store_at(tmp_path) as store, sending(store) as sender:
        await asyncio.sleep(0.05)
        await store.add(ended_job(receiver.url), b"{}")
        sender.notify()
        await settled(store)
        assert receiver.ids == ["j"]


@in_loop
async def test_a_failed_attempt_is_repeated_after_the_interval(tmp_path):
    async with receiving(500) as receiver, store_at(tmp_path) as store:
        job = ended_job(receiver.url)
        await store.add(job, b"{}")
        async with sending(store):
            webhook = await settled(store)
        assert webhook.attempts == 2
        assert webhook.delivered_at - job.finished_at >= BEHAVIOUR.webhook_retry_interval_s
        assert receiver.ids == ["j", "j"]


@in_loop
async def test_after_the_last_attempt_it_is_given_up(tmp_path):
    async with receiving(500, 502, 503) as receiver, store_at(tmp_path) as store:
        await store.add(ended_job(receiver.url), b"{}")
        async with sending(store):
            webhook = await settled(store)
        assert (webhook.attempts, webhook.delivered_at, webhook.failure) == (3, None, "HTTP 503")
        assert len(receiver.posts) == 3


@pytest.mark.parametrize("status", [201, 204, 302, 307, 400, 500])
@in_loop
async def test_nothing_but_status_200_is_a_delivery(tmp_path, status):
    async with receiving(status) as receiver, store_at(tmp_path) as store:
        await store.add(ended_job(receiver.url), b"{}")
        async with sending(store, ONE_ATTEMPT):
            webhook = await settled(store)
        assert (webhook.delivered_at, webhook.failure) == (None, f"HTTP {status}")
        assert len(receiver.posts) == 1, "a redirect was followed"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://127.0.0.1/x?token=secret",
        "ws://127.0.0.1/x?token=secret",
        "file:///etc/hosts?token=secret",
        "no url?token=secret",
        "http://?token=secret",
        "http://[?token=secret",
    ],
)
@in_loop
async def test_an_address_that_is_no_http_url_is_a_failure(tmp_path, caplog, url):
    async with store_at(tmp_path) as store:
        await store.add(ended_job(url), b"{}")
        async with sending(store, ONE_ATTEMPT):
            webhook = await settled(store)
        assert webhook.failure == "not an http or https URL"
        assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("url", "failure"),
    [
        ("http://127.0.0.1:99999/?token=secret", "InvalidUrlClientError"),
        ("http://127.0.0.1:1/?token=secret", "ClientConnectorError"),
    ],
)
@in_loop
async def test_an_address_that_leads_nowhere_is_a_failure_named_by_its_class(
    tmp_path, caplog, url, failure
):
    async with store_at(tmp_path) as store:
        await store.add(ended_job(url), b"{}")
        async with sending(store, ONE_ATTEMPT):
            webhook = await settled(store)
        assert webhook.failure == failure
        assert "secret" not in caplog.text


@in_loop
async def test_a_receiver_that_does_not_answer_in_time_has_failed(tmp_path):
    async with receiving() as receiver, store_at(tmp_path) as store:
        receiver.is_open.clear()
        await store.add(ended_job(receiver.url), b"{}")
        async with sending(store, replace(ONE_ATTEMPT, webhook_timeout_s=0.1)):
            webhook = await settled(store)
        assert webhook.failure == "TimeoutError"


@in_loop
async def test_a_receiver_that_closes_the_connection_has_failed(tmp_path):
    async with receiving(0) as receiver, store_at(tmp_path) as store:
        await store.add(ended_job(receiver.url), b"{}")
        async with sending(store, ONE_ATTEMPT):
            webhook = await settled(store)
        assert webhook.failure == "ServerDisconnectedError"
        assert len(receiver.posts) == 1


@in_loop
async def test_a_slow_receiver_does_not_hold_back_others(tmp_path):
    async with receiving() as slow, receiving() as quick, store_at(tmp_path) as store:
        slow.is_open.clear()
        for n in range(MAX_SENDS_PER_RECEIVER + 5):
            await store.add(ended_job(slow.url, f"slow-{n}"), b"{}")
        await store.add(ended_job(quick.url, "quick"), b"{}")
        async with sending(store):
            await until(lambda: len(slow.posts) == MAX_SENDS_PER_RECEIVER)
            await settled(store, "quick")
            assert len(slow.posts) == MAX_SENDS_PER_RECEIVER
            slow.is_open.set()
            await until(lambda: len(slow.posts) == MAX_SENDS_PER_RECEIVER + 5)


@in_loop
async def test_a_repetition_falls_due_while_another_job_is_being_sent(tmp_path):
    async with receiving() as slow, receiving(500) as other, store_at(tmp_path) as store:
        slow.is_open.clear()
        await store.add(ended_job(slow.url, "slow"), b"{}")
        await store.add(ended_job(other.url, "other"), b"{}")
        async with sending(store):
            webhook = await settled(store, "other")
            assert (webhook.attempts, len(slow.posts)) == (2, 1)


@in_loop
async def test_a_job_is_not_sent_twice_at_once(tmp_path):
    async with receiving() as receiver, store_at(tmp_path) as store, sending(store) as sender:
        receiver.is_open.clear()
        await store.add(ended_job(receiver.url), b"{}")
        for _ in range(10):
            sender.notify()
            await asyncio.sleep(0.01)
        assert receiver.ids == ["j"]
        receiver.is_open.set()
        assert (await settled(store)).attempts == 1


@in_loop
async def test_a_delivery_is_recorded_in_a_job_that_changed_meanwhile(tmp_path):
    async with receiving() as receiver, store_at(tmp_path) as store:
        receiver.is_open.clear()
        await store.add(ended_job(receiver.url), b"{}")
        async with sending(store):
            await until(lambda: receiver.posts)
            assert await store.replace(replace(await store.get("j"), error="changed"))
            receiver.is_open.set()
            webhook = await settled(store)
        assert webhook.delivered_at is not None
        assert (await store.get("j")).error == "changed"


class ContestedStore(SqliteStore):
    """Somebody else is quicker the first time."""

    is_contested = True

    async def replace(self, job, **output):
        if self.is_contested:
            self.is_contested = False
            stored = await self.get(job.id)
            assert stored is not None
            await super().replace(replace(stored, error="changed"))
        return await super().replace(job, **output)


@in_loop
async def test_a_delivery_is_recorded_although_somebody_else_was_quicker(tmp_path):
    async with receiving() as receiver, store_at(tmp_path, ContestedStore) as store:
        await store.add(ended_job(receiver.url), b"{}")
        async with sending(store):
            webhook = await settled(store)
        assert webhook.attempts == 1
        assert (await store.get("j")).error == "changed"
        assert receiver.ids == ["j"]


@in_loop
async def test_a_job_that_ends_anew_while_it_is_sent_is_sent_anew(tmp_path):
    async with receiving() as receiver, store_at(tmp_path) as store:
        receiver.is_open.clear()
        await store.add(ended_job(receiver.url), b"{}")
        async with sending(store) as sender:
            await until(lambda: receiver.posts)
            again = lifecycle.retry(await store.get("j"), time.time())
            assert await store.replace(failed(again))
            sender.notify()
            receiver.is_open.set()
            webhook = await settled(store)
        assert webhook.attempts == 1, "the attempt for the older end was counted"
        assert receiver.ids == ["j", "j"]


@in_loop
async def test_a_retried_job_is_left_alone_by_the_attempt_for_its_failure(tmp_path):
    async with receiving() as receiver, store_at(tmp_path) as store:
        receiver.is_open.clear()
        await store.add(ended_job(receiver.url), b"{}")
        async with sending(store):
            await until(lambda: receiver.posts)
            queued = lifecycle.retry(await store.get("j"), time.time())
            assert queued is not None
            assert await store.replace(queued)
            receiver.is_open.set()
            await store.add(ended_job(receiver.url, "next"), b"{}")
            await settled(store, "next")
        assert await store.get("j") == replace(queued, revision=queued.revision + 1)
        assert queued.status is JobStatus.IN_QUEUE


@pytest.mark.parametrize("statuses", [(), (500, 500, 500)], ids=["delivered", "given up"])
@in_loop
async def test_a_hidden_job_is_forgotten_once_its_webhook_is_settled(tmp_path, statuses):
    async with receiving(*statuses) as receiver, store_at(tmp_path) as store:
        await store.add(ended_job(receiver.url, is_hidden=True), b"{}")
        async with sending(store):

            async def is_gone():
                return await store.get("j") is None

            await until(is_gone)
        assert len(receiver.posts) == max(1, len(statuses))


@in_loop
async def test_a_job_hidden_while_it_is_sent_is_forgotten(tmp_path):
    async with receiving() as receiver, store_at(tmp_path) as store:
        receiver.is_open.clear()
        await store.add(ended_job(receiver.url), b"{}")
        async with sending(store):
            await until(lambda: receiver.posts)
            assert await store.replace(
                lifecycle.expire(await store.get("j"), time.time(), BEHAVIOUR)
            )
            receiver.is_open.set()

            async def is_gone():
                return await store.get("j") is None

            await until(is_gone)


@in_loop
async def test_a_killed_sender_leaves_its_attempt_to_the_next(tmp_path):
    async with receiving() as receiver:
        receiver.is_open.clear()
        async with store_at(tmp_path) as store:
            await store.add(ended_job(receiver.url), b"{}")
        killed = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SENDER_PROGRAM, tmp_path / "jobs.db", env={"PYTHONPATH": SOURCE}
        )
        await until(lambda: receiver.posts)
        killed.kill()
        await killed.wait()
        receiver.is_open.set()
        async with store_at(tmp_path) as store, sending(store):
            assert (await settled(store)).attempts == 1
        assert len(receiver.posts) == 2


@in_loop
async def test_a_large_result_arrives_whole(tmp_path):
    large = json.dumps({"id": "j", "output": "x" * 20_000_000}).encode()

    async def large_body(job):
        return large

    async with receiving() as receiver, store_at(tmp_path) as store:
        await store.add(ended_job(receiver.url), b"{}")
        async with sending(store, body=large_body):
            await settled(store)
        assert receiver.posts == [large]


@in_loop
async def test_a_job_whose_body_cannot_be_had_does_not_hold_back_others(tmp_path, caplog):
    async def body(job):
        if job.id == "broken":
            raise StoreUnusable("the disk is full")
        return await id_as_body(job)

    async with receiving() as receiver, store_at(tmp_path) as store:
        await store.add(ended_job(receiver.url, "broken"), b"{}")
        await store.add(ended_job(receiver.url, "whole"), b"{}")
        async with sending(store, body=body):
            await settled(store, "whole")
        assert (await store.get("broken")).webhook.attempts == 0
        assert receiver.ids == ["whole"]
        assert [r.job_id for r in caplog.records if r.exc_info] == ["broken"]


class StoreWithAPast(SqliteStore):
    """Cannot be read the first time."""

    has_failed = False

    async def webhooks_due(self, now, limit):
        if not self.has_failed:
            self.has_failed = True
            raise StoreUnusable("the disk is full")
        return await super().webhooks_due(now, limit)


@in_loop
async def test_a_store_that_recovers_is_read_again(tmp_path):
    async with receiving() as receiver, store_at(tmp_path, StoreWithAPast) as store:
        await store.add(ended_job(receiver.url), b"{}")
        async with sending(store) as sender:
            await until(lambda: store.has_failed)
            sender.notify()
            await settled(store)
        assert receiver.ids == ["j"]


@in_loop
async def test_every_attempt_is_one_line_in_the_log(tmp_path, caplog):
    async with receiving(500) as receiver, store_at(tmp_path) as store:
        await store.add(ended_job(receiver.url + "?token=secret"), b"{}")
        with caplog.at_level(logging.INFO, logger="runpod_emulator"):
            async with sending(store):
                await settled(store)
        lines = [r for r in caplog.records if r.name == "runpod_emulator.jobs.webhooks"]
        assert [(r.levelname, r.job_id, r.attempt, r.status) for r in lines] == [
            ("WARNING", "j", 1, "HTTP 500"),
            ("INFO", "j", 2, "HTTP 200"),
        ]
        assert not any("secret" in str(vars(r)) for r in lines)
