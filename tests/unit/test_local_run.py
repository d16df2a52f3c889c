"""One job at a desk: where it is read from, and what is made of the handler's reply."""

import json

import pytest

from pixpod.errors import InvalidSettings
from pixpod.serving.local_run import read_test_input, run_job
from pixpod.serving.refusing_worker import RefusingWorker


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


def run_input(given):
    return run_job(echo, json.dumps({"input": given}))


def test_images_named_as_files_become_base64(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    name = f"@{tmp_path / 'a.png'}"
    given = {
        "image": name,
        "mask": name,
        "ip_adapter": {"images": [name, name]},
        "controlnets": [{"type": "canny", "image": name}],
    }
    assert run_input(given)["output"]["echo"]["input"] == {
        "image": "iVBORw==",
        "mask": "iVBORw==",
        "ip_adapter": {"images": ["iVBORw==", "iVBORw=="]},
        "controlnets": [{"type": "canny", "image": "iVBORw=="}],
    }


def test_other_fields_and_other_images_stay_as_they_are():
    given = {"prompt": "@home", "image": "https://example.org/@a.png", "mask": None, "seed": [1]}
    assert run_input(given)["output"]["echo"]["input"] == given


def test_image_file_that_cannot_be_read_is_a_failed_job(tmp_path):
    given = {"controlnets": [{"image": "https://example.org"}, {"image": f"@{tmp_path}/none.png"}]}
    outcome = run_input(given)
    assert outcome["status"] == "FAILED"
    [problem] = json.loads(outcome["error"].removeprefix("invalid_input: "))["problems"]
    assert problem["field"] == "controlnets[1].image"
    assert "none.png: No such file or directory" in problem["accepted"]


def test_name_with_nul_is_a_failed_job():
    assert "no name of a file" in run_input({"image": "@a\0b"})["error"]
