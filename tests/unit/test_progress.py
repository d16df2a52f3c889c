"""Updates about a running job: in order, one at a time, none at its end."""

import asyncio
import contextlib
import logging

import pytest

from pixpod.serving.progress import Position, Progress

TICK_S = 0.01


class Sender:
    """Notes what is sent; each update is under way for `seconds`."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.updates = []
        self.num_under_way = 0
        self.most_under_way = 0

    async def __call__(self, job_id, update):
        self.num_under_way += 1
        self.most_under_way = max(self.most_under_way, self.num_under_way)
        try:
            await asyncio.sleep(self.seconds)
            self.updates.append(update)
        finally:
            self.num_under_way -= 1

    @property
    def steps(self):
        return [update["step"] for update in self.updates]


def progress_of(send, num_steps=20):
    return Progress(job_id="job-1", num_calls=num_steps, send=send, interval_s=TICK_S)


async def until(holds):
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(TICK_S / 4)


@pytest.mark.parametrize(
    ("position", "update"),
    [
        (Position(0, 28), {"phase": "waiting", "step": 0, "steps": 28, "percent": 0}),
        (Position(7, 28), {"phase": "denoising", "step": 7, "steps": 28, "percent": 25}),
        (Position(26, 28), {"phase": "denoising", "step": 26, "steps": 28, "percent": 92}),
    ],
)
def test_update_says_how_far_the_job_is(position, update):
    assert position.as_update() == update


def test_updates_grow_by_a_tenth_at_least():
    sender = Sender()
    progress = progress_of(sender, num_steps=100)

    async def generate():
        async with progress.reporting():
            for step in range(1, 99):
                progress.on_step(step, 100)
                await asyncio.sleep(TICK_S / 2)

    asyncio.run(generate())
    gains = [
        later - earlier for earlier, later in zip(sender.steps, sender.steps[1:], strict=False)
    ]
    assert sender.steps
    assert min(gains) >= 10


def test_waiting_is_reported_once():
    sender = Sender()

    async def wait():
        async with progress_of(sender).reporting():
            await asyncio.sleep(10 * TICK_S)

    asyncio.run(wait())
    assert [update["phase"] for update in sender.updates] == ["waiting"]


@pytest.mark.parametrize("num_steps", [1, 4])
def test_nothing_is_sent_in_the_last_step_or_after_it(num_steps):
    sender = Sender()
    progress = progress_of(sender, num_steps)

    async def generate():
        async with progress.reporting():
            for step in (num_steps - 1, num_steps):
                progress.on_step(step, num_steps)
                await asyncio.sleep(5 * TICK_S)

    asyncio.run(generate())
    assert sender.updates == []


def test_update_under_way_is_waited_for_before_the_block_is_left():
    sender = Sender(seconds=10 * TICK_S)
    progress = progress_of(sender)

    async def generate():
        async with progress.reporting():
            await until(lambda: sender.num_under_way)
        return sender.num_under_way, len(sender.updates)

    assert asyncio.run(generate()) == (0, 1)


def test_update_under_way_is_waited_for_when_the_job_fails():
    sender = Sender(seconds=10 * TICK_S)
    progress = progress_of(sender)

    async def generate():
        with contextlib.suppress(ValueError):
            async with progress.reporting():
                await until(lambda: sender.num_under_way)
                raise ValueError
        return sender.num_under_way, len(sender.updates)

    assert asyncio.run(generate()) == (0, 1)


def test_cancelled_job_waits_for_no_update():
    sender = Sender(seconds=600)
    progress = progress_of(sender)

    async def generate():
        async with progress.reporting():
            await asyncio.sleep(600)

    async def cancel():
        task = asyncio.create_task(generate())
        await until(lambda: sender.num_under_way)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return sender.num_under_way

    assert asyncio.run(asyncio.wait_for(cancel(), 60)) == 0


def test_updates_are_sent_one_at_a_time():
    sender = Sender(seconds=5 * TICK_S)
    progress = progress_of(sender)

    async def generate():
        async with progress.reporting():
            for step in range(1, 19):
                progress.on_step(step, 20)
                await asyncio.sleep(2 * TICK_S)

    asyncio.run(generate())
    assert len(sender.updates) > 1
    assert sender.most_under_way == 1


def test_sender_that_fails_costs_the_job_nothing(caplog):
    async def fail(job_id, update):
        raise RuntimeError("broken")

    async def generate():
        async with progress_of(fail).reporting():
            await asyncio.sleep(5 * TICK_S)
        return "done"

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(generate()) == "done"
    assert "progress failed unexpectedly" in caplog.messages


def test_nothing_is_reported_without_a_sender():
    async def generate():
        async with progress_of(None).reporting():
            return len(asyncio.all_tasks())

    assert asyncio.run(generate()) == 1
