"""A whole job has a time limit, and its error says how far it got."""

import asyncio

import pytest
from support.factories import OFFER, make_job

from pixpod.contract.payload import parse_job
from pixpod.errors import DeadlineExceeded
from pixpod.serving.deadline import deadline, limit_s
from pixpod.serving.progress import Position


@pytest.mark.parametrize(
    ("max_job_s", "execution_timeout_s", "expected_s"),
    [(600, None, 600), (600, 900, 600), (600, 600, 599), (600, 5, 4), (600, 1, 0.5)],
)
def test_job_is_answered_before_the_platform_ends_it(max_job_s, execution_timeout_s, expected_s):
    assert limit_s(max_job_s, execution_timeout_s) == expected_s


@pytest.mark.parametrize(
    ("policy", "expected_s"),
    [
        ({"executionTimeout": 5000, "ttl": 60_000}, 5.0),
        ({"executionTimeout": 0}, None),
        ({"executionTimeout": True}, None),
        ({"executionTimeout": "5000"}, None),
        ({"ttl": 60_000}, None),
        (["executionTimeout"], None),
        (None, None),
    ],
)
def test_platforms_limit_is_read_where_it_is_given(policy, expected_s):
    job = parse_job(make_job() | {"policy": policy}, OFFER)
    assert job.execution_timeout_s == expected_s


def test_job_without_a_policy_has_no_limit_of_its_own():
    assert parse_job(make_job(), OFFER).execution_timeout_s is None


async def wait_long(position):
    async with deadline(0.01, lambda: position):
        await asyncio.sleep(600)


@pytest.mark.parametrize(
    ("position", "text"),
    [
        (Position(0, 28), "not begun after 0.01 s"),
        (Position(7, 28), "stopped after 0.01 s at step 7 of 28: request fewer steps"),
        (Position(28, 28), "stopped after 0.01 s while its images were encoded and stored"),
    ],
)
def test_error_says_how_far_the_job_got(position, text):
    with pytest.raises(DeadlineExceeded, match=text):
        asyncio.run(wait_long(position))


def test_job_in_time_is_left_alone():
    async def finish():
        async with deadline(600, lambda: Position(0, 1)):
            return "done"

    assert asyncio.run(finish()) == "done"


def test_cancellation_from_outside_is_no_deadline():
    async def cancel():
        task = asyncio.create_task(wait_long_enough())
        await asyncio.sleep(0)
        task.cancel()
        await task

    async def wait_long_enough():
        async with deadline(600, lambda: Position(0, 1)):
            await asyncio.sleep(600)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())


def test_own_timeout_of_what_is_awaited_is_taken_for_none_of_ours():
    async def time_out():
        async with deadline(600, lambda: Position(3, 4)):
            raise TimeoutError("of a socket")

    with pytest.raises(TimeoutError, match="of a socket"):
        asyncio.run(time_out())
