"""What is refused with 429, against the table of the platform's documentation."""

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runpod_emulator.api.limits import (
    WINDOW_S,
    Operation,
    RateLimited,
    RateLimiter,
)
from runpod_emulator.settings import EndpointSettings

ENDPOINT = EndpointSettings(id="e", command=("worker",))


DOCUMENTED = {
    "run": (1000, 200),
    "runsync": (2000, 400),
    "status": (2000, 400),
    "status-sync": (2000, 400),
    "stream": (2000, 400),
    "cancel": (100, 20),
    "purge-queue": (2, None),
    "requests": (10, 2),
}
CONCURRENT = [(Operation(name), most) for name, (_, most) in DOCUMENTED.items() if most]


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limiter(clock):
    return RateLimiter(clock)


def ask(limiter, operation, times=1, endpoint_id="e"):
    for _ in range(times):
        with limiter.admit(endpoint_id, operation):
            pass


@pytest.mark.parametrize("operation", [Operation(name) for name in DOCUMENTED])
def test_operation_has_its_documented_rate(limiter, operation):
    per_10_s, _ = DOCUMENTED[operation]
    ask(limiter, operation, per_10_s)
    with pytest.raises(RateLimited) as refused:
        ask(limiter, operation)
    assert refused.value.retry_after_s == WINDOW_S
    expected = f"{operation}: at most {per_10_s} requests in 10 s for one endpoint; "
    assert str(refused.value) == expected + "--no-rate-limits lifts this limit"


@pytest.mark.parametrize(("operation", "concurrent"), CONCURRENT)
def test_operation_has_its_documented_concurrency(limiter, clock, operation, concurrent):
    answers = [limiter.admit("e", operation) for _ in range(concurrent)]
    for answer in answers:
        answer.__enter__()
    clock.now += 2 * WINDOW_S
    with pytest.raises(RateLimited, match=f"at most {concurrent} requests at once"):
        ask(limiter, operation)
    answers[0].__exit__(None, None, None)
    ask(limiter, operation)


@pytest.mark.parametrize("operation", sorted(set(Operation) - DOCUMENTED.keys()))
def test_operation_that_is_not_listed_has_no_limit(limiter, operation):
    ask(limiter, operation, 5000)


def test_each_endpoint_and_each_operation_counts_alone(limiter):
    ask(limiter, Operation.PURGE_QUEUE, 2)
    ask(limiter, Operation.PURGE_QUEUE, 2, endpoint_id="other")
    ask(limiter, Operation.REQUESTS, 10)
    with pytest.raises(RateLimited):
        ask(limiter, Operation.PURGE_QUEUE)


def test_window_slides(limiter, clock):
    ask(limiter, Operation.PURGE_QUEUE)
    clock.now += 6.0
    ask(limiter, Operation.PURGE_QUEUE)
    with pytest.raises(RateLimited) as refused:
        ask(limiter, Operation.PURGE_QUEUE)
    assert refused.value.retry_after_s == 4.0
    clock.now += 4.0
    ask(limiter, Operation.PURGE_QUEUE)
    with pytest.raises(RateLimited) as refused:
        ask(limiter, Operation.PURGE_QUEUE)
    assert refused.value.retry_after_s == 6.0


def test_failed_answer_gives_its_place_back(limiter):
    for _ in range(3):  # one more than may be answered at once
        with pytest.raises(ZeroDivisionError), limiter.admit("e", Operation.REQUESTS):
            raise ZeroDivisionError
    ask(limiter, Operation.REQUESTS)


def test_limiter_that_is_off_refuses_nothing(clock):
    ask(RateLimiter(clock, is_on=False), Operation.PURGE_QUEUE, 100)


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), max_size=60))
def test_no_window_has_more_and_no_refusal_is_needless(gaps_s):
    clock = Clock()
    limiter = RateLimiter(clock)
    accepted: list[float] = []
    for gap_s in gaps_s:
        clock.now += gap_s
        recent = sum(at > clock.now - WINDOW_S for at in accepted)
        try:
            ask(limiter, Operation.PURGE_QUEUE)
        except RateLimited as refused:
            assert recent == 2
            assert clock.now + refused.retry_after_s == accepted[-2] + WINDOW_S
        else:
            assert recent < 2
            accepted.append(clock.now)


@pytest.mark.parametrize(
    ("workers_max", "queued", "is_full"),
    [(3, 1500, False), (3, 1501, True), (1, 500, False), (0, 50, False), (0, 51, True)],
)
def test_queue_is_full_beyond_fifty_jobs_and_five_hundred_for_each_worker(
    workers_max, queued, is_full
):
    endpoint = replace(ENDPOINT, workers_max=workers_max)
    assert is_refused(RateLimiter(time.monotonic), endpoint, queued) is is_full


@pytest.mark.parametrize("switch", ["is_on", "limits_queue"])
def test_queue_may_grow_if_either_limit_is_off(switch):
    limiter = RateLimiter(time.monotonic, **{switch: False})
    assert not is_refused(limiter, ENDPOINT, 10_000)


def is_refused(limiter, endpoint, queued):
    try:
        limiter.check_queue(Operation.RUN, endpoint, queued)
    except RateLimited:
        return True
    return False
