"""`runpod-emulator` alone in a project's folder: what it finds, prints, and reloads."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from support.emulator_process import LIMIT_S, end, environ, run, running, wait_for

HANDLER = """
import json, sys
import runpod

GREETING = json.load(open("greeting.json"))

def handler(job):
    if job["input"].get("fails"):
        raise ValueError("no such colour")
    return [GREETING, job["input"].get("name"), sys.prefix]

runpod.serverless.start({"handler": handler})
"""
CLIENT = """
import os, json, runpod
runpod.api_key = os.environ["RUNPOD_API_KEY"]
print(json.dumps(runpod.Endpoint("project").run_sync(json.loads(os.environ["JOB"]), timeout=50)))
"""


@pytest.fixture
def project(tmp_path):
    """A project whose handler is in src/ and whose files are found from its folder."""
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "handler.py").write_text(HANDLER, encoding="utf-8")
    (folder / "greeting.json").write_text('"hello"', encoding="utf-8")
    (folder / "test_input.json").write_text('{"input": {"name": "test"}}', encoding="utf-8")
    return folder


@pytest.fixture
def python_of_the_project(project):
    """A virtual environment whose Python has the packages of the one that runs the tests."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=project, check=True
    )
    (site,) = (project / ".venv" / "lib").glob("python*/site-packages")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(packages), encoding="utf-8")
    return project / ".venv" / "bin" / "python"


def exported(text):
    """The variables of the printed export line, as a shell sees them."""
    (line,) = re.findall(r"^  (export .*)$", text, re.MULTILINE)
    names = re.findall(r"(\w+)=", line)
    shown = subprocess.run(
        ["sh", "-c", f"{line}; " + "; ".join(f'echo "${name}"' for name in names)],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(names, shown.stdout.splitlines(), strict=True))


def ask(project, variables, **given):
    """The output of a job, by the SDK's client, configured by the exported variables alone."""
    client = subprocess.run(
        [sys.executable, "-c", CLIENT],
        env={**environ(project), **variables, "JOB": json.dumps({"input": given})},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert client.returncode == 0, client.stderr
    return json.loads(client.stdout)


def test_exported_variables_are_all_that_a_client_needs(project, python_of_the_project):
    with running(project, "--port", 0) as (process, text):
        output = ask(project, exported(text), name="me")
        assert end(process) == 0
    assert output == ["hello", "me", str(project / ".venv")]
    log = (project / "stderr").read_text()
    for event in ("job queued", "job taken", "job ended"):
        assert re.search(rf"^\d\d:\d\d:\d\d INFO {event}  endpoint=project job=", log, re.MULTILINE)
    assert re.search(r"job taken .* delay_ms=\d+$", log, re.MULTILINE)
    assert re.search(r"job ended .* status=COMPLETED .* execution_ms=\d+$", log, re.MULTILINE)


def test_printed_curl_submits_the_projects_test_input(project):
    with running(project, "--port", 0, "--quiet") as (_, text):
        line = text.partition("curl:\n")[2].replace("\\\n", " ").strip()
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=LIMIT_S)
        assert json.loads(done.stdout)["output"][:2] == ["hello", "test"], done.stderr


def test_active_environment_runs_the_handler(project, python_of_the_project):
    (project / ".venv").rename(active := project.parent / "active")
    folder = environ(project)
    done = subprocess.run(
        [sys.executable, "-m", "runpod_emulator", "test", "--verbose"],
        cwd=project,
        env={**folder, "VIRTUAL_ENV": str(active)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S * 2,
    )
    assert re.search(r"ok +test_input.json +COMPLETED", done.stdout), done.stderr
    assert done.returncode == 0


def test_python_without_the_sdk_is_named_with_the_command_that_installs_it(project):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "bare"], cwd=project, check=True)
    python = project / "bare" / "bin" / "python"
    done = run(project, "--python", "bare", "--port", 0)
    assert done.returncode == 2
    assert f"uv pip install --python {shlex.quote(str(python))} runpod" in done.stderr
    assert "Traceback" not in done.stderr


def test_changed_handler_answers_the_next_job(project):
    source = project / "src" / "handler.py"
    with running(project, "--port", 0, "--reload", "--workers-min", 1) as (process, text):
        variables = exported(text)
        assert ask(project, variables)[0] == "hello"
        source.write_text(HANDLER.replace("[GREETING,", "['changed',"), encoding="utf-8")
        wait_for(lambda: "workers restart" in (project / "stderr").read_text())
        assert ask(project, variables)[0] == "changed"
        source.write_text("import nothing_like_it", encoding="utf-8")
        wait_for(lambda: "nothing_like_it" in (project / "stderr").read_text())
        source.write_text(HANDLER.replace("[GREETING,", "['mended',"), encoding="utf-8")
        assert ask(project, variables)[0] == "mended"
        assert end(process) == 0


def test_traceback_of_a_handler_is_on_lines_of_its_own(project):
    with running(project, "--port", 0) as (process, text):
        variables = exported(text)
        url = f"{variables['RUNPOD_ENDPOINT_BASE_URL']}/project/runsync"
        key = f"Authorization: Bearer {variables['RUNPOD_API_KEY']}"
        job = '{"input": {"fails": true}}'
        subprocess.run(
            ["curl", "-s", url, "-d", job, "-H", key], capture_output=True, timeout=LIMIT_S
        )
        assert end(process) == 0
    log = (project / "stderr").read_text()
    assert re.search(r"ERROR \[\w+\] ValueError: no such colour$", log, re.MULTILINE)
    assert re.search(r"^    ValueError: no such colour$", log, re.MULTILINE)
    assert re.search(r"job ended .* status=FAILED .* error=ValueError: no such colour$", log, re.M)
    assert "\\n" not in log


def test_json_log_is_json_on_every_line(project):
    with running(project, "--port", 0, "--log-format", "json") as (process, text):
        ask(project, exported(text))
        assert end(process) == 0
    lines = (project / "stderr").read_text().splitlines()
    events = [json.loads(line) for line in lines if line and not line.startswith("Stopping")]
    assert {"job queued", "job taken", "job ended", "Finished."} <= {
        event["message"] for event in events
    }
    assert {event.get("job") for event in events if event["message"] == "Finished."} != {None}


def test_fixture_of_the_pytest_plugin_runs_the_projects_handler_once(project):
    (project / "test_words.py").write_text(
        """
import runpod

def output(emulator, name):
    runpod.endpoint_url_base, runpod.api_key = emulator.base_url, emulator.api_key
    return runpod.Endpoint("test").run_sync({"name": name}, timeout=50)

def test_one(runpod_emulator):
    assert output(runpod_emulator, "one")[:2] == ["hello", "one"]

def test_two(runpod_emulator):
    assert output(runpod_emulator, "two")[:2] == ["hello", "two"]
    workers = runpod_emulator.state()["endpoints"]["test"]["workers"]
    assert [worker["num_results"] for worker in workers] == [2]
""",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"],
        cwd=project,
        env={**environ(project), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=LIMIT_S * 2,
    )
    assert "2 passed" in done.stdout, done.stdout
