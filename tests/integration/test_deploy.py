"""scripts/deploy against the API: what is sent, what is said, and how trouble ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from support.rest_v2_server import API_KEY, PATH, Fault, running_rest_v2

from pixpod_tools.deploy.cli import main
from pixpod_tools.deploy.client import ServerlessApi
from pixpod_tools.deploy.errors import InvalidConfiguration, PlatformUnavailable

ROOT = Path(__file__).resolve().parents[2]
FILE = """
name = "pixpod"
image = "example.org/pixpod:1.0"
profile = "flux-schnell+sdxl"

[env]
PIXPOD_S3_BUCKET = "images"

[secrets]
PIXPOD_S3_ACCESS_KEY_ID = "s3_id"
PIXPOD_S3_SECRET_ACCESS_KEY = "s3_key"
"""


@pytest.fixture
def account():
    with running_rest_v2() as account:
        yield account


@pytest.fixture
def deploy(account, tmp_path, monkeypatch, capsys):
    """Runs the script with the file and some flags; the key must never be seen."""
    monkeypatch.setenv("RUNPOD_API_KEY", API_KEY)
    file = tmp_path / "deploy.toml"
    file.write_text(FILE, encoding="utf-8")

    def run(*flags):
        status = main(["--config", str(file), "--api-url", account.url, *flags])
        out, err = capsys.readouterr()
        assert API_KEY not in out + err
        return status, out, err

    return run


def only(account):
    (endpoint,) = account.endpoints.values()
    return endpoint


def test_endpoint_is_created_once(deploy, account):
    status, out, err = deploy("--yes")
    assert (status, err) == (0, "")
    assert out.startswith("endpoint 'pixpod': create\n  image: example.org/pixpod:1.0\n")
    assert "env.PIXPOD_S3_SECRET_ACCESS_KEY: {{ RUNPOD_SECRET_s3_key }}" in out
    assert "endpoint id: ep1\n" in out
    assert "curl -X POST https://api.runpod.ai/v2/ep1/runsync" in out
    assert "the platform did not take" not in out
    assert only(account)["gpu"]["pools"] == ["ADA_24", "ADA_48_PRO", "BLACKWELL_96"]

    status, out, err = deploy("--yes")
    assert (status, err) == (0, "")
    assert out.startswith("endpoint 'pixpod' (ep1): no change\n")
    assert "endpoint id: ep1\n" in out
    assert [method for method, _, _ in account.requests] == ["GET", "POST", "GET"]


def test_second_run_needs_no_yes(deploy):
    deploy("--yes")
    assert deploy()[0] == 0


def test_update_sends_what_changes(deploy, account):
    deploy("--yes")
    status, out, _ = deploy("--yes", "--image", "example.org/pixpod:1.1")
    assert status == 0
    assert "image: example.org/pixpod:1.0 -> example.org/pixpod:1.1" in out
    assert account.writes[1:] == [("PATCH", f"{PATH}/ep1", {"image": "example.org/pixpod:1.1"})]
    assert only(account)["image"] == "example.org/pixpod:1.1"


def test_change_made_in_the_console_is_shown_and_undone(deploy, account):
    deploy("--yes")
    before = dict(only(account)["env"])
    only(account)["workers"]["max"] = 30
    only(account)["env"]["DEBUG"] = "hunter2"
    status, out, _ = deploy("--yes")
    assert status == 0
    assert "  workers.max: 30 -> 3\n  env.DEBUG: (not shown) -> (not set)\n" in out
    assert "hunter2" not in out
    assert only(account)["workers"] == {"min": 0, "max": 3, "idleTimeout": 5}
    assert only(account)["env"] == before


@pytest.mark.parametrize(
    "flags",
    [
        ["--scaler", "request_count", "--scaler-value", "2"],
        ["--profile", "tiny", "--name", "tiny"],
        ["--mode", "volume", "--network-volume-id", "vol1", "--data-centers", "EU-RO-1"],
        ["--mode", "cached-model", "--models", "sdxl"],
        ["--exclude-gpus", "NVIDIA L40", "--gpu-pools", "ADA_48_PRO"],
        ["--flashboot", "priority", "--registry-auth-id", "cred", "--min-cuda", "13.1"],
        ["--env", "PIXPOD_LOG_LEVEL=ERROR", "--secret", "HF_TOKEN=hub", "--idle-timeout-s", "60"],
    ],
    ids=" ".join,
)
def test_each_choice_is_accepted_and_then_stays(deploy, account, flags):
    deploy("--yes")
    assert deploy("--yes", *flags)[0] == 0
    writes = len(account.writes)
    status, out, _ = deploy(*flags)
    assert (status, len(account.writes)) == (0, writes)
    assert ": no change\n" in out
    assert deploy("--yes")[0] == 0, "and back"


def test_dry_run_reads_only(deploy, account):
    status, out, _ = deploy("--dry-run")
    assert (status, account.writes) == (0, [])
    assert out.startswith("endpoint 'pixpod': create\n")
    deploy("--yes")
    status, out, _ = deploy("--dry-run", "--max-workers", "7")
    assert (status, len(account.writes)) == (0, 1)
    assert "  workers.max: 3 -> 7\n" in out


def test_dry_run_without_a_key_touches_nothing(deploy, account, monkeypatch):
    monkeypatch.delenv("RUNPOD_API_KEY")
    status, out, _ = deploy("--dry-run")
    assert (status, account.requests) == (0, [])
    assert out.startswith("endpoint 'pixpod': create\n")
    assert "without an API key nothing was read" in out


def test_without_a_key_nothing_is_done(deploy, account, monkeypatch):
    monkeypatch.delenv("RUNPOD_API_KEY")
    status, _, err = deploy("--yes")
    assert (status, account.requests) == (4, [])
    assert err == "no API key: set RUNPOD_API_KEY or name its file by --api-key-file\n"


def test_key_is_read_from_a_file(deploy, monkeypatch, tmp_path):
    monkeypatch.delenv("RUNPOD_API_KEY")
    (tmp_path / "key").write_text(f"{API_KEY}\n", encoding="utf-8")
    assert deploy("--yes", "--api-key-file", str(tmp_path / "key"))[0] == 0
    assert deploy("--yes", "--api-key-file", str(tmp_path / "absent"))[0] == 2


@pytest.mark.parametrize(
    ("typed", "is_done"), [("y\n", True), ("yes\n", True), ("n\n", False), ("", False)]
)
def test_user_has_to_confirm(deploy, account, monkeypatch, typed, is_done):
    reader, writer = os.openpty()
    with os.fdopen(writer, "r", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        os.write(reader, typed.encode() or b"\x04")
        status, out, err = deploy()
    os.close(reader)
    assert "create? [y/N] " in out
    assert (status, len(account.writes)) == ((0, 1) if is_done else (3, 0))
    assert err == ("" if is_done else "nothing was changed\n")


def test_nobody_to_ask_is_no_yes(deploy, account):
    status, out, err = deploy()
    assert (status, account.writes) == (3, [])
    assert out.startswith("endpoint 'pixpod': create\n")
    assert "add --yes" in err


def test_two_endpoints_of_the_name_are_refused(deploy, account):
    deploy("--yes")
    account.endpoints["ep2"] = only(account) | {"id": "ep2"}
    status, _, err = deploy("--yes")
    assert (status, len(account.writes)) == (6, 1)
    assert "2 endpoints are named 'pixpod' (ep1, ep2)" in err


def test_refusals_of_the_platform_are_reported(deploy, account, monkeypatch):
    create = account.create
    monkeypatch.setattr(account, "create", lambda body: create(body | {"flashboot": "OFF"}))
    status, out, _ = deploy("--yes")
    assert status == 0
    assert "the platform did not take:\n  flashboot: OFF -> FLASHBOOT\n" in out


def test_configuration_is_checked_before_anything_is_read(deploy, account):
    status, _, err = deploy("--yes", "--gpu-pools", "ADA_23")
    assert (status, account.requests) == (2, [])
    assert "ADA_23" in err
    assert "any of AMPERE_16, AMPERE_24, ADA_24, " in err


PROBLEM = b'{"title": "t", "status": 1, "detail": "no such volume", "errors": ["$.gpu: bad"]}'


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (Fault(status=400, body=PROBLEM), 5, "does not accept the request\n    no such volume\n"),
        (Fault(status=401, body=PROBLEM), 4, "check RUNPOD_API_KEY"),
        (Fault(status=403, body=PROBLEM), 4, "give it write access"),
        (Fault(status=404, body=PROBLEM), 5, "is not there"),
        (Fault(status=409, body=PROBLEM), 5, "was changed meanwhile"),
        (Fault(status=422, body=PROBLEM), 5, "\n    $.gpu: bad\n"),
        (Fault(status=429, headers={"Retry-After": "61"}), 7, "run this again after 61 s"),
        (Fault(status=500, body=f'{{"detail": "{API_KEY}"}}'.encode()), 7, "***; it may have"),
        (Fault(status=503, body=b"<html>"), 7, "it may have been done: run this again"),
        (Fault(status=201, body=b"<html>"), 7, "cannot be read"),
        (Fault(status=201, body=b'{"id": "x"}'), 7, "cannot be read (name: Field required)"),
        (Fault(status=302, headers={"Location": "http://127.0.0.1:9/"}), 5, "302"),
        (Fault(status=418, body=b"[]"), 5, "418"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Fault) else None,
)
def test_refusal_of_a_write_is_reported_and_not_retried(deploy, account, fault, status, words):
    answer = account.answer

    def answer_then_fail(method, path, body):
        account.faults.append(fault)
        return answer(method, path, body)

    account.answer = answer_then_fail
    found, _, err = deploy("--yes")
    assert found == status
    assert words in err
    assert len(account.writes) == 1


@pytest.fixture
def slept():
    return []


@pytest.fixture
def api(account, slept):
    api = ServerlessApi(SecretStr(API_KEY), account.url, sleep=slept.append, timeout_s=(1, 0.2))
    yield api
    api.close()


def test_trouble_while_reading_is_waited_out(api, account, slept):
    slow = Fault(status=200, delay_s=0.5)
    account.faults += [Fault(status=503), slow, Fault(status=429, headers={"Retry-After": "30"})]
    assert api.endpoints() == []
    assert slept == [1, 2, 30]


def test_trouble_that_stays_ends_the_run(api, account, slept):
    account.faults += [Fault(status=502)] * 4
    with pytest.raises(PlatformUnavailable, match="502 Bad Gateway, trouble at the platform"):
        api.endpoints()
    assert (slept, len(account.requests)) == ([1, 2, 4], 4)


def test_too_many_requests_are_repeated_even_to_write(api, account, slept):
    account.faults.append(Fault(status=429, headers={"Retry-After": "3"}))
    body = {
        "name": "x",
        "type": "QUEUE",
        "image": "x:1",
        "scaling": {"type": "REQUEST_COUNT", "requestCount": 1},
        "gpu": {"pools": ["ADA_24"]},
    }
    assert api.create(body).id == "ep1"
    assert slept == [3]


def test_write_without_an_answer_is_not_repeated(api, account, slept):
    account.faults.append(Fault(status=200, delay_s=0.5))
    with pytest.raises(PlatformUnavailable, match=r"no answer in time to PATCH .* it may have"):
        api.update("ep1", {"image": "x:1"})
    assert (slept, len(account.requests)) == ([], 1)


def test_unreachable_platform_is_reported(slept):
    api = ServerlessApi(SecretStr(API_KEY), "http://127.0.0.1:9", sleep=slept.append)
    with pytest.raises(PlatformUnavailable, match="no connection for GET"):
        api.endpoints()
    assert slept == [1, 2, 4]


def test_key_does_not_travel_in_the_clear():
    with pytest.raises(InvalidConfiguration, match="https"):
        ServerlessApi(SecretStr(API_KEY), "http://api.example.org")


def test_key_is_not_replaced_by_one_of_netrc(api, account, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("default login a password b\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert api.endpoints() == []


def test_script_runs_as_a_program(account, tmp_path):
    (tmp_path / "deploy.toml").write_text(FILE, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "pixpod_tools.deploy.cli", "--yes", "--api-url", account.url],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "RUNPOD_API_KEY": API_KEY},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "endpoint id: ep1\n" in run.stdout
    assert run.stderr == ""
