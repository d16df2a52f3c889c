"""`python -m runpod_emulator` as its users run it, with the real SDK's worker and client."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.emulator_process import LIMIT_S, command, end, environ, run, running, wait_for

HANDLER = """
import runpod

def handler(job):
    if job["input"].get("fails"):
        raise ValueError("no such colour")
    return {"echo": job["input"]}

runpod.serverless.start({"handler": handler})
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("pid", os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "handler.py").write_text(HANDLER, encoding="utf-8")
    (folder / "stubborn.py").write_text(STUBBORN, encoding="utf-8")
    return folder


def printed_python(text):
    block = text.partition("Python:\n")[2].partition("\n\n")[0]
    return "\n".join(line.strip() for line in block.splitlines())


def test_printed_lines_submit_a_job_and_sigterm_ends_it_cleanly(folder):
    with running(folder, "--handler", "handler.py", "--port", 0) as (process, text):
        client = subprocess.run(
            [sys.executable, "-c", printed_python(text)],
            env=environ(folder),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert client.stdout == "{'echo': {'prompt': 'Hello'}}\n", client.stderr
        assert end(process) == 0
    key = (folder / ".runpod_emulator" / "api_key").read_text()
    shown = text + (folder / "stderr").read_text()
    assert key not in shown
    assert "Traceback" not in shown
    assert "Starting Serverless Worker" in shown
    assert list((folder / ".runpod_emulator" / "logs").iterdir())


def test_jobs_and_key_outlive_a_restart(folder):
    """Nothing runs at first, so that the job is still queued when the emulator ends."""
    idle = ("--endpoint", "demo", "--port", 0, "--workers-max", 0, "--handler", "handler.py")
    with running(folder, *idle) as (process, text):
        submit = printed_python(text).replace("run_sync", "run").replace("print(", "job = (")
        client = subprocess.run(
            [sys.executable, "-c", f"{submit}\nprint(job.job_id)"],
            env=environ(folder),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        job_id = client.stdout.strip()
        assert job_id, client.stderr
        assert end(process, signal.SIGINT) == 0
    with running(folder, "--port", 0, "--quiet", "--handler", "handler.py") as (process, text):
        setup = printed_python(text).rpartition("\n")[0]
        ask = (
            "from runpod.endpoint.runner import Job, RunPodClient\n"
            f"print(Job('demo', {job_id!r}, RunPodClient()).output(timeout={LIMIT_S}))"
        )
        client = subprocess.run(
            [sys.executable, "-c", f"{setup}\n{ask}"],
            env=environ(folder),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert client.stdout == "{'echo': {'prompt': 'Hello'}}\n", client.stderr
        assert end(process) == 0
    assert "Starting Serverless Worker" not in (folder / "stderr").read_text()


def test_second_interrupt_kills_workers_that_do_not_end(folder):
    flags = ("--port", 0, "--workers-min", 1, "--handler", "stubborn.py")
    with running(folder, *flags) as (process, _):
        pid = int(
            wait_for(lambda: re.search(r"pid (\d+)", (folder / "stderr").read_text())).group(1)
        )
        process.send_signal(signal.SIGINT)
        wait_for(lambda: "Stopping" in (folder / "stderr").read_text())
        assert process.poll() is None
        assert end(process, signal.SIGINT) == -signal.SIGINT
    wait_for(lambda: not Path("/proc", str(pid)).exists())


def test_port_that_is_taken_ends_with_status_1_and_one_line(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(folder, "--handler", "handler.py", "--port", port)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_second_emulator_on_one_state_folder_is_refused(folder):
    with running(folder, "--handler", "handler.py", "--port", 0):
        done = run(folder, "--handler", "handler.py", "--port", 0)
    assert done.returncode == 1
    assert "expected no other emulator in it" in done.stderr
    assert "Traceback" not in done.stderr


def test_key_of_ones_own_is_what_opens_it(folder):
    flags = ("--handler", "handler.py", "--port", 0, "--api-key", "chosen")
    with running(folder, *flags) as (process, text):
        assert "chosen" not in text
        (base_url,) = set(re.findall(r"http://[0-9.:]+/v2", text))
        url = f"{base_url}/demo/health"
        for key, status in (("chosen", 200), ("other", 401)):
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
            try:
                with urllib.request.urlopen(request) as answer:
                    assert answer.status == status
            except urllib.error.HTTPError as error:
                assert error.code == status
                error.close()
        assert end(process) == 0
    assert not (folder / ".runpod_emulator" / "api_key").exists()


def write_tests(folder, *tests):
    path = folder / "tests.json"
    document = {"tests": tests, "config": {"env": [{"key": "GIVEN", "value": "here"}]}}
    path.write_text(json.dumps(document), encoding="utf-8")


def hub_test(folder, *arguments):
    return run(folder, "test", "--tests", "tests.json", *arguments)


def leftovers(folder):
    return list(folder.glob("runpod-emulator-*"))


def test_hub_tests_that_complete_pass(folder):
    write_tests(folder, {"name": "one", "input": {"a": 1}}, {"name": "two", "input": {"b": 2}})
    done = hub_test(folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r"ok +one +COMPLETED", done.stdout)
    assert done.stdout.endswith("2 of 2 passed\n")
    assert "one: IN_QUEUE" in done.stderr
    assert leftovers(folder) == []
    assert not (folder / ".runpod_emulator").exists()


def test_hub_test_of_a_failed_job_fails_although_the_answer_is_200(folder):
    write_tests(folder, {"name": "bad", "input": {"fails": True}, "timeout": 1000})
    done = hub_test(folder, "--timeout", 30)
    assert done.returncode == 1
    assert re.search(r"FAIL +bad +FAILED .*ValueError: no such colour", done.stdout)
    assert done.stdout.endswith("0 of 1 passed\n")


def test_hub_tests_timeout_bounds_the_execution(folder):
    slow = HANDLER.replace("return", "import time; time.sleep(60); return")
    (folder / "handler.py").write_text(slow, encoding="utf-8")
    write_tests(folder, {"name": "slow", "input": {"a": 1}, "timeout": 1000})
    done = hub_test(folder)
    assert done.returncode == 1
    assert "executionTimeout exceeded" in done.stdout


def test_hub_test_of_a_worker_that_does_not_start_says_why(folder):
    (folder / "handler.py").write_text("import nothing_like_it", encoding="utf-8")
    write_tests(folder, {"name": "one", "input": {"a": 1}})
    done = hub_test(folder)
    assert done.returncode == 1
    assert "the worker does not start" in done.stdout
    assert "No module named 'nothing_like_it'" in done.stdout


def test_environment_of_the_file_reaches_the_worker_and_flags_override_it(folder):
    told = HANDLER.replace(
        'if job["input"].get("fails"):', 'import os\n    if os.environ["GIVEN"] != "there":'
    )
    (folder / "handler.py").write_text(told, encoding="utf-8")
    write_tests(folder, {"name": "one", "input": {"a": 1}})
    assert hub_test(folder).returncode == 1
    assert hub_test(folder, "--env", "GIVEN=there").returncode == 0


def test_interrupted_hub_tests_leave_nothing(folder):
    write_tests(folder, {"name": "one", "input": {"a": 1}})
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command("test", "--tests", "tests.json", "--", "sleep", "600"),
            cwd=folder,
            env=environ(folder),
            stderr=stderr,
        )
    wait_for(lambda: "IN_QUEUE" in (folder / "stderr").read_text())
    assert leftovers(folder)
    assert end(process) == 130
    assert leftovers(folder) == []
