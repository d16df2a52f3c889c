"""One job at a desk: where it is read from, and what is made of the handler's reply."""

import json

import pytest

from pixpod.errors import InvalidSettings
from pixpod.serving.local_run import read_test_input, run_job
from pixpod.serving.worker import RefusingWorker


async def echo(job):
    return {"echo": dict(job)}


def test_job_is_run_under_an_id_of_its_own():
    job = {"id": "local_test", "input": {"prompt": "x"}}
    assert run_job(echo, json.dumps({"input": {"prompt": "x"}})) == {
        "id": "local_test",
        "status": "COMPLETED",
        "output": {"echo": job},
    }


def test_id_of_the_job_is_kept():
    assert run_job(echo, '{"id": "mine", "input": {}}')["id"] == "mine"


def test_error_of_the_handler_is_a_failed_job():
    outcome = run_job(RefusingWorker(InvalidSettings("PIXPOD_DEVICE='gpu'")).handle, "{}")
    assert outcome == {
        "id": "local_test",
        "status": "FAILED",
        "error": "invalid_settings: PIXPOD_DEVICE='gpu'",
    }


@pytest.mark.parametrize("text", ["", "{", "{'input': {}}", "[]", "7", "null"])
def test_text_that_is_no_json_object_is_a_failed_job(text):
    outcome = run_job(echo, text)
    assert (outcome["id"], outcome["status"]) == ("local_test", "FAILED")
    problems = json.loads(outcome["error"].removeprefix("invalid_input: "))["problems"]
    assert [problem["field"] for problem in problems] == ["test_input"]
    assert "a JSON object" in problems[0]["accepted"]


def test_job_is_read_from_the_flag():
    assert read_test_input('{"input": {}}') == '{"input": {}}'


def test_job_is_read_from_a_file(tmp_path):
    path = tmp_path / "job.json"
    path.write_text('{"input": {"prompt": "caf\u00e9"}}', encoding="utf-8")
    assert read_test_input(f"@{path}") == path.read_text(encoding="utf-8")


def test_job_is_read_from_the_working_directory_where_the_sdk_looks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_test_input(None) is None
    (tmp_path / "test_input.json").write_text("{}", encoding="utf-8")
    assert read_test_input(None) == "{}"
    assert read_test_input("[]") == "[]"
