"""Workers run in their project's directory, as `python handler.py` does there."""

import sys

import pytest
from support.platform import call

from runpod_emulator.command_line.config_file import parse_configuration
from runpod_emulator.testing import running_emulator

HANDLER = """
import os
import runpod

def handler(job):
    return {"text": open("greeting.txt").read(), "home": os.environ["HOME"], "cwd": os.getcwd()}

runpod.serverless.start({"handler": handler})
"""
ENDPOINTS: dict[str, dict[str, object]] = {
    "file": {"handler": "src/handler.py"},
    "module": {"command": [sys.executable, "-u", "-m", "src.handler"]},
    "elsewhere": {"handler": "src/handler.py", "workdir": "other"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "src").mkdir()
    (folder / "other").mkdir()
    (folder / "src" / "handler.py").write_text(HANDLER, encoding="utf-8")
    (folder / "greeting.txt").write_text("hello", encoding="utf-8")
    (folder / "other" / "greeting.txt").write_text("good evening", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def answers(project):
    document = {
        "emulator": {"port": 0, "state_dir": "state", "echo_logs": False},
        "endpoints": {name: {**table, "workers_min": 1} for name, table in ENDPOINTS.items()},
    }
    settings = parse_configuration(document, project, {}).settings("test-key")
    with running_emulator(settings) as platform:
        yield {
            name: call(platform, "/runsync", {"input": {"n": 1}}, endpoint_id=name)["output"]
            for name in ENDPOINTS
        }


@pytest.mark.parametrize("name", ["file", "module"])
def test_worker_finds_modules_and_files_of_its_project(project, answers, name):
    assert answers[name]["text"] == "hello"
    assert answers[name]["cwd"] == str(project)


def test_worker_runs_in_another_directory_on_request(project, answers):
    assert answers["elsewhere"]["text"] == "good evening"


def test_each_worker_has_a_home_of_its_own(project, answers):
    homes = {answer["home"] for answer in answers.values()}
    assert len(homes) == len(ENDPOINTS)
    assert all(home.startswith(str(project / "state" / "workers")) for home in homes)
