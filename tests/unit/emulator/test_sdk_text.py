"""Readable forms of the SDK's log lines and errors, and of the emulator's log about them."""

import json
import logging

import pytest

from runpod_emulator.command_line.logs import JsonFormatter, TextFormatter
from runpod_emulator.emulator import _echo
from runpod_emulator.sdk_text import WORKER_OUTPUT, PrintedLine, parse_line, readable_error

EXCEPTION = {
    "error_type": "<class 'ValueError'>",
    "error_message": "no such colour",
    "error_traceback": "Traceback ...\n  File ...\nValueError: no such colour\n",
    "hostname": "unknown",
}


def sdk_line(message, level="INFO", job_id="job-1"):
    return json.dumps({"requestId": job_id, "message": message, "level": level})


def test_line_of_the_sdk_has_its_level_and_its_job():
    assert parse_line(sdk_line("Started.")) == PrintedLine(logging.INFO, "job-1", "Started.")
    assert parse_line(sdk_line("Odd", "WARN", None)) == PrintedLine(logging.WARNING, None, "Odd")


@pytest.mark.parametrize(
    "line", ["hello", "", "{", "[]", '{"message": 3, "requestId": null}', '{"message": "no id"}']
)
def test_any_other_line_is_text(line):
    assert parse_line(line) == PrintedLine(logging.INFO, None, line)


def test_exception_that_the_sdk_prints_becomes_readable():
    printed = parse_line(sdk_line(json.dumps(EXCEPTION, indent=4), "ERROR"))
    assert printed.level == logging.ERROR
    assert printed.text.splitlines()[:2] == ["ValueError: no such colour", "Traceback ..."]


def test_exception_that_the_sdk_reports_becomes_readable():
    assert readable_error(json.dumps(EXCEPTION)).startswith("ValueError: no such colour\nTraceback")


@pytest.mark.parametrize("error", ["plain", "3", "{}", '{"code": 1}', "[]", "{"])
def test_other_errors_stay_as_they_are(error):
    assert readable_error(error) == error


def test_traceback_of_a_worker_is_logged_on_lines_of_its_own(caplog):
    with caplog.at_level(logging.INFO, WORKER_OUTPUT):
        _echo("w1", sdk_line(json.dumps(EXCEPTION), "ERROR"))
        _echo("w1", "100 % done")
    error, progress = (TextFormatter().format(record)[9:] for record in caplog.records)
    assert error.splitlines() == [
        "ERROR [w1] ValueError: no such colour  job=job-1",
        "    Traceback ...",
        "      File ...",
        "    ValueError: no such colour",
    ]
    assert progress == "INFO [w1] 100 % done"
    line = json.loads(JsonFormatter().format(caplog.records[1]))
    assert (line["worker"], line["message"]) == ("w1", "100 % done")
