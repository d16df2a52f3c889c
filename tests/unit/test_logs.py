"""Log lines: one JSON object each, with the job's id, whatever is logged."""

import asyncio
import json
import logging
import threading

import pytest

from pixpod.logs import CHATTY_LIBRARIES, JsonFormatter, configure_logging, job_context


def line(message="hello", *args, exc_info=None, **extra):
    logger = logging.getLogger("pixpod.test")
    record = logger.makeRecord(
        logger.name, logging.INFO, "file.py", 1, message, args, exc_info, extra=extra
    )
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return json.loads(text)


@pytest.fixture
def restored_levels():
    levels = {name: logging.getLogger(name).level for name in CHATTY_LIBRARIES}
    yield
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)


def test_line_says_when_who_and_what():
    found = line("hello %s", "you", size="64x64")
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "INFO",
        "logger": "pixpod.test",
        "message": "hello you",
        "job_id": None,
        "size": "64x64",
    }


def test_line_names_the_job_inside_its_context_only():
    with job_context("job-1"):
        with job_context("job-2"):
            assert line()["job_id"] == "job-2"
        assert line()["job_id"] == "job-1"
    assert line()["job_id"] is None


def test_overlapping_jobs_keep_their_ids():
    async def job(id):
        with job_context(id):
            await asyncio.sleep(0)
            return line()["job_id"], await asyncio.to_thread(lambda: line()["job_id"])

    async def both():
        return await asyncio.gather(job("a"), job("b"))

    assert asyncio.run(both()) == [("a", "a"), ("b", "b")]


def test_extra_cannot_hide_what_each_line_says():
    with job_context("job-1"):
        found = line(job_id="forged", level="forged", time="forged")
    assert (found["job_id"], found["level"]) == ("job-1", "INFO")
    assert found["time"] != "forged"


def test_strange_values_are_logged_as_text():
    found = line("caf\u00e9 \n \ud800", path=object, numbers={1: 2})
    assert found["path"] == "<class 'object'>"
    assert found["numbers"] == {"1": 2}
    assert found["message"] == "caf\u00e9 \n \ud800"


def test_traceback_is_in_the_line():
    try:
        raise RuntimeError("broken")
    except RuntimeError as exc:
        found = line(exc_info=(type(exc), exc, exc.__traceback__))
    assert "RuntimeError: broken" in found["traceback"]


def test_sensitive_texts_of_a_job_are_masked_in_values_only():
    with job_context("job-1", ["a red circle", "traceback", "pixpod.test", "job-1 or so"]):
        try:
            raise RuntimeError("a red circle")
        except RuntimeError as exc:
            error = (type(exc), exc, exc.__traceback__)
        found = line("no %r", "a red circle", exc_info=error, size=["a red circle", 7])
    assert (found["message"], found["size"]) == ("no '***'", ["***", 7])
    assert found["traceback"].startswith("Traceback ")
    assert found["traceback"].endswith("RuntimeError: ***")
    assert (found["logger"], found["job_id"]) == ("pixpod.test", "job-1")


def test_sensitive_texts_are_masked_in_threads_without_the_job_and_soon_after_it():
    found = []
    log = threading.Thread(target=lambda: found.append(line("a blue square")))
    with job_context("job-1", ["a blue square"]):
        log.start()
        log.join()
    found.append(line("a blue square"))
    assert [(each["message"], each["job_id"]) for each in found] == [("***", None)] * 2


@pytest.mark.usefixtures("restored_levels")
def test_logs_go_to_standard_error_and_libraries_are_quiet(capsys):
    configure_logging("INFO")
    logging.getLogger("pixpod.test").info("ours")
    logging.getLogger("pixpod.test").debug("too much")
    for name in CHATTY_LIBRARIES:
        logging.getLogger(name).warning("chatter")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [json.loads(each)["message"] for each in captured.err.splitlines()] == ["ours"]
