"""What hangs in production is recognised, counted and told with what to do about it."""

import logging

import pytest

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.hazards import (
    ADVICE,
    Hazard,
    HazardKind,
    HazardLog,
    hazards_of_chunk,
    hazards_of_input,
    hazards_of_result,
)

BEHAVIOUR = Behaviour(max_result_bytes=1000, max_chunk_bytes=100)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, [HazardKind.EMPTY_INPUT]),
        (None, [HazardKind.EMPTY_INPUT]),
        ({"input": {"prompt": "a cat"}}, [HazardKind.DOUBLE_WRAPPED_INPUT]),
        ({"input": "a cat", "seed": 1}, []),
        ({"prompt": "a cat"}, []),
        (0, []),
        ("", []),
        ([], []),
        (["input"], []),
    ],
)
def test_hazards_of_an_input(value, expected):
    assert hazards_of_input(value) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"output": {"image": "..."}}, []),
        ({"output": None}, []),
        ({"error": "no memory"}, []),
        ({"output": {"x": 1}, "error": "half of it", "stopPod": True}, []),
        ({}, [HazardKind.NO_OUTPUT]),
        ({"stopPod": True}, [HazardKind.NO_OUTPUT]),
        ({"output": {"output": 1}}, [HazardKind.DOUBLE_WRAPPED_OUTPUT]),
        ({"output": {"output": 1, "seed": 2}}, []),
        ({"error": {"code": 5}}, [HazardKind.ERROR_NOT_A_STRING]),
        ({"error": None}, [HazardKind.ERROR_NOT_A_STRING]),
        ({"output": "NaN"}, []),
    ],
)
def test_hazards_of_a_result(body, expected):
    assert hazards_of_result(body, 1000, BEHAVIOUR, has_nan=False) == expected


def test_a_result_over_the_limit_is_a_hazard_besides_others():
    found = hazards_of_result({"output": None}, 1001, BEHAVIOUR, has_nan=True)
    assert found == [HazardKind.OVERSIZE_RESULT, HazardKind.NOT_A_NUMBER]


@pytest.mark.parametrize(
    ("size_bytes", "has_nan", "expected"),
    [
        (100, False, []),
        (101, False, [HazardKind.OVERSIZE_CHUNK]),
        (100, True, [HazardKind.NOT_A_NUMBER]),
    ],
)
def test_hazards_of_a_chunk(size_bytes, has_nan, expected):
    assert hazards_of_chunk(size_bytes, BEHAVIOUR, has_nan=has_nan) == expected


def test_every_kind_has_advice():
    assert ADVICE.keys() == set(HazardKind)
    assert all(";" in text for text in ADVICE.values())


def test_a_hazard_is_one_warning_with_its_advice(caplog):
    with caplog.at_level(logging.DEBUG):
        HazardLog(lambda: 1.0).report(
            HazardKind.LATE_RESULT, endpoint_id="e", job_id="j", worker_id="w", detail="3 s late"
        )
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"hazard late-result: 3 s late: {ADVICE[HazardKind.LATE_RESULT]}"
    )
    assert (record.endpoint_id, record.job_id, record.worker_id) == ("e", "j", "w")


def test_the_last_hazards_are_kept_newest_first_and_all_are_counted():
    times = iter([1.0, 2.0, 3.0])
    log = HazardLog(lambda: next(times), keep=2)
    log.report(HazardKind.CRASH_LOOP, endpoint_id="e", worker_id="w")
    log.report(HazardKind.CRASH_LOOP, endpoint_id="e", worker_id="w")
    log.report(HazardKind.NO_OUTPUT, endpoint_id="e", job_id="j")
    assert log.recent == (
        Hazard(
            at=3.0,
            kind=HazardKind.NO_OUTPUT,
            endpoint_id="e",
            job_id="j",
            worker_id=None,
            message=ADVICE[HazardKind.NO_OUTPUT],
        ),
        Hazard(
            at=2.0,
            kind=HazardKind.CRASH_LOOP,
            endpoint_id="e",
            job_id=None,
            worker_id="w",
            message=ADVICE[HazardKind.CRASH_LOOP],
        ),
    )
    assert log.counts == {HazardKind.CRASH_LOOP: 2, HazardKind.NO_OUTPUT: 1}
