"""handler.py from a shell: exit status, one line of JSON on standard output, nothing at import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.bad_payloads import BAD_PAYLOADS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    def run_handler(*flags, **env):
        return subprocess.run(
            [sys.executable, ROOT / "handler.py", *flags],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"} | env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run_handler


def outcome_of(finished):
    assert finished.stdout.endswith("\n")
    assert finished.stdout.count("\n") == 1
    assert "Traceback" not in finished.stderr
    return json.loads(finished.stdout)


def test_no_job_says_how_to_give_one(run):
    finished = run()
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith("Nothing to do:")
    assert "--test_input" in finished.stderr


def test_help_is_given(run):
    finished = run("--help")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "--test_input JSON|@FILE" in finished.stdout


def test_text_that_is_no_json_is_a_failed_job(run):
    finished = run("--test_input", "{")
    outcome = outcome_of(finished)
    assert finished.returncode == 1
    assert outcome["status"] == "FAILED"
    assert outcome["error"].startswith("invalid_input: ")


def test_bad_payload_is_a_failed_job(run, tmp_path):
    (bad,) = (bad for bad in BAD_PAYLOADS if bad.id == "everything at once")
    (tmp_path / "test_input.json").write_text(json.dumps(bad.job), encoding="utf-8")
    finished = run()
    outcome = outcome_of(finished)
    assert finished.returncode == 1
    assert (outcome["id"], outcome["status"]) == ("job-1", "FAILED")
    assert outcome["error"].startswith("invalid_input: ")


def test_deployment_that_is_set_up_wrongly_is_a_failed_job(run):
    finished = run("--test_input", '{"input": {}}', PIXPOD_DEVICE="gpu")
    assert finished.returncode == 1
    error = outcome_of(finished)["error"]
    assert error.startswith("invalid_settings: PIXPOD_DEVICE: expected one of")
