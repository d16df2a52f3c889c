"""The results of Hub tests: when a test has passed, and how results are shown."""

from dataclasses import replace

import pytest

from runpod_emulator.command_line.hub_report import MAX_ERROR_CHARACTERS, HubResult, report_of
from runpod_emulator.jobs.job import JobStatus


def result(**given):
    usual = HubResult(name="first", http_status=200, status=JobStatus.COMPLETED, duration_s=1.25)
    return replace(usual, **given)


@pytest.mark.parametrize(
    ("given", "has_passed"),
    [
        ({}, True),
        ({"status": JobStatus.FAILED}, False),
        ({"status": JobStatus.IN_QUEUE}, False),
        ({"status": None}, False),
        ({"http_status": 400}, False),
        ({"http_status": None}, False),
    ],
)
def test_answer_of_200_and_a_completed_job_pass(given, has_passed):
    assert result(**given).has_passed is has_passed


def test_report_is_a_table_with_what_went_wrong_below():
    report = report_of(
        [
            result(),
            result(name="much longer", status=JobStatus.FAILED, duration_s=12, error="one\ntwo\n"),
            result(name="x", status=None, http_status=400, error="body: no"),
            result(name="y", status=None, http_status=None),
        ]
    )
    assert report == (
        "      test         status     seconds  error\n"
        "ok    first        COMPLETED      1.2\n"
        "FAIL  much longer  FAILED        12.0  one\n"
        "FAIL  x            HTTP 400       1.2  body: no\n"
        "FAIL  y            no answer      1.2\n"
        "\n"
        "much longer:\n"
        "    one\n"
        "    two\n"
        "\n"
        "1 of 4 passed\n"
    )


def test_long_error_is_cut_in_the_table_and_whole_below():
    error = "e" * (MAX_ERROR_CHARACTERS + 1)
    table, details, _ = report_of([result(status=JobStatus.FAILED, error=error)]).split("\n\n")
    assert error not in table
    assert error in details


def test_report_lists_what_was_not_run():
    table, summary = report_of([result()], ["Health check"]).split("\n\n")
    assert table.splitlines()[-1].startswith("skip  Health check  not run")
    assert summary == "1 of 1 passed, 1 not run\n"
