"""The command line, as far as it goes before anything starts: flags, key, texts, exit status."""

import io
import json
import logging
import shlex
import stat
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from runpod_emulator.command_line.cli import main
from runpod_emulator.command_line.config_file import DEFAULT_PORT
from runpod_emulator.command_line.flags import (
    configuration_of,
    fault_rules,
    id_of,
    literal,
    parse_flags,
)
from runpod_emulator.command_line.hub_run import Progress
from runpod_emulator.command_line.logs import JsonFormatter, TextFormatter
from runpod_emulator.command_line.state_dir import kept_key, prepare_state_dir
from runpod_emulator.command_line.welcome import KeySource, welcome
from runpod_emulator.errors import EmulatorError
from runpod_emulator.faults import FaultAction
from runpod_emulator.jobs.job import JobStatus
from runpod_emulator.settings import EmulatorSettings, EndpointSettings, Scaler


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "My Demo"
    folder.mkdir()
    (folder / "handler.py").touch()
    monkeypatch.chdir(folder)
    return folder


def settings(*arguments):
    return configuration_of(parse_flags(arguments), {}).settings("key")


def endpoint(*arguments):
    (made,) = settings(*arguments).endpoints
    return made


def refusal(*arguments):
    with pytest.raises(EmulatorError) as caught:
        settings(*arguments)
    return str(caught.value)


def test_handler_alone_makes_an_endpoint_named_after_its_folder(folder):
    made = settings("--handler", "handler.py")
    assert made.endpoints == (
        EndpointSettings(id="my-demo", command=(sys.executable, "-u", str(folder / "handler.py"))),
    )
    assert (made.host, made.port) == ("127.0.0.1", DEFAULT_PORT)
    assert made.state_dir == folder / ".runpod_emulator"
    assert made.database == folder / ".runpod_emulator" / "jobs.db"


def test_every_flag_of_an_endpoint_reaches_it(folder):
    made = endpoint(
        *("serve", "--endpoint", "x", "--handler", "handler.py", "--workers-min", "1"),
        *("--workers-max", "5", "--idle-timeout", "0.5", "--scaler", "REQUEST_COUNT"),
        *("--scaler-value", "2", "--execution-timeout", "9", "--gpu", "L4", "--capacity", "3"),
        *("--env", "A=b=c", "--env", "D=", "--workdir", ".."),
    )
    assert made == EndpointSettings(
        id="x",
        command=(sys.executable, "-u", str(folder / "handler.py")),
        workers_min=1,
        workers_max=5,
        idle_timeout_s=0.5,
        scaler=Scaler.REQUEST_COUNT,
        scaler_value=2,
        execution_timeout_s=9,
        gpu="L4",
        capacity=3,
        env={"A": "b=c", "D": ""},
        workdir=folder / "..",
    )


def test_every_flag_of_the_emulator_reaches_it(folder):
    made = settings(
        *("--handler", "handler.py", "--host", "::1", "--port", "0", "--state-dir", "s"),
        *("--db", "d.db", "--no-rate-limits", "--quiet", "--seed", "3", "--cors", "*"),
        *("--behaviour", "poll_hold_s=2.5", "--behaviour", "late_progress=reopen"),
        *("--behaviour", "queue_limit=false"),
    )
    assert (made.host, made.port, made.seed) == ("::1", 0, 3)
    assert (made.state_dir, made.database) == (folder / "s", folder / "d.db")
    assert (made.rate_limits, made.echo_logs, made.cors_origin) == (False, False, "*")
    assert made.behaviour.poll_hold_s == 2.5
    assert made.behaviour.late_progress == "reopen"
    assert made.behaviour.queue_limit is False


def test_command_follows_a_double_dash(folder):
    assert endpoint("--", "sh", "-c", "exit", "--", "--port").command == (
        *("sh", "-c", "exit", "--", "--port"),
    )
    assert endpoint("--", "sh").id == "my-demo"


def test_handler_and_command_exclude_each_other(folder):
    assert "either handler or command" in refusal("--handler", "handler.py", "--", "sh")


def test_project_without_a_handler_is_refused_with_what_would_be_run(folder):
    (folder / "handler.py").unlink()
    assert refusal() == refusal("serve") == refusal("--port", "0")
    assert refusal().startswith(f"handler: expected handler.py or src/handler.py in {folder}")


def test_misspelt_behaviour_gets_the_right_name(folder):
    told = refusal("--handler", "handler.py", "--behaviour", "max_retry=2", "--port", "-1")
    assert told.splitlines() == [
        "emulator.port: expected at least 0, got -1",
        "behaviour.max_retry: expected max_retries (there is no 'max_retry')",
    ]


def test_flags_override_a_file_but_for_its_endpoints(folder):
    Path("e.toml").write_text(
        '[emulator]\nport = 1\nseed = 2\n[endpoints.a]\nhandler = "handler.py"\n'
        '[endpoints.b]\nhandler = "handler.py"\n',
        encoding="utf-8",
    )
    made = settings("--config", "e.toml", "--port", "3")
    assert (made.port, made.seed) == (3, 2)
    assert [each.id for each in made.endpoints] == ["a", "b"]
    assert refusal("--config", "e.toml", "--gpu", "L4", "--endpoint", "a") == (
        "with --config these belong into the file: endpoint, gpu"
    )
    assert "belong into the file: command" in refusal("--config", "e.toml", "--", "sh")


def test_file_without_endpoints_is_refused(folder):
    Path("e.toml").touch()
    assert refusal("--config", "e.toml").startswith("endpoints: expected at least one")


def test_faults_are_parsed_before_anything_starts(folder):
    given = parse_flags(["--fault", '{"at": "run", "action": "delay", "value": 2}'])
    (rule,) = fault_rules(given)
    assert (rule.action, rule.value) == (FaultAction.DELAY, 2)
    assert fault_rules(parse_flags([])) == ()


@pytest.mark.parametrize(
    "faults",
    [
        ("{",),
        ("[]",),
        ('{"at": "nowhere", "action": "drop"}',),
        ('{"at": "run", "action": "drop"}', '{"at": "run", "action": "drop"}'),
    ],
)
def test_fault_that_cannot_be_is_refused(faults):
    given = parse_flags([word for fault in faults for word in ("--fault", fault)])
    with pytest.raises(EmulatorError, match="--fault"):
        fault_rules(given)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("3", 3), ("-0.5", -0.5), ("reopen", "reopen"), ("[1]", "[1]"), ("", "")],
)
def test_value_of_a_flag_is_what_it_looks_like(text, value):
    assert literal(text) == value
    assert type(literal(text)) is type(value)


@pytest.mark.parametrize(
    ("folder", "key"),
    [
        ("/srv/My_Model 2", "my-model-2"),
        ("/srv/My_Model 2/src", "my-model-2"),
        ("/srv/--", "endpoint"),
        ("/", "endpoint"),
        (f"/srv/{'x' * 80}", "x" * 63),
    ],
)
def test_id_is_made_of_the_folders_name(folder, key):
    assert id_of(Path(folder)) == key


@pytest.mark.parametrize(
    "arguments",
    [
        ("--nonsense",),
        ("tset",),
        ("--handler", "handler.py", "--workers-min", "x"),
        ("--handler", "handler.py", "--env", "A"),
        ("--handler", "handler.py", "--env", "=A"),
        ("--handler", "handler.py", "--work", "1"),
    ],
)
def test_flag_that_cannot_be_ends_with_status_2(folder, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "runpod-emulator" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--handler", "none.py"), "endpoints.my-demo.handler: expected a Python file that exists"),
        (("--handler", "handler.py", "--host", "0.0.0.0"), "host: expected 127.0.0.1"),
        (("--handler", "handler.py", "--host", "example.org"), "got 'example.org'"),
        (("--handler", "handler.py", "--api-key", "a b"), "--api-key: expected"),
        (("--handler", "handler.py", "--api-key", ""), "--api-key: expected"),
        (("--handler", "handler.py", "--env", "RUNPOD_POD_ID=x"), "RUNPOD_POD_ID"),
        (("--config", "none.toml"), "none.toml"),
        (("test",), ".runpod/tests.json"),
    ],
)
def test_setting_that_cannot_be_used_ends_with_status_2(folder, arguments, told, capsys):
    (folder / ".runpod_emulator").touch()  # so that nothing starts if nothing is refused
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_key_of_the_environment_is_checked_and_not_shown(folder, monkeypatch, capsys):
    monkeypatch.setenv("RUNPOD_EMULATOR_API_KEY", "secret key")
    (folder / ".runpod_emulator").touch()
    assert main(["--handler", "handler.py"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("RUNPOD_EMULATOR_API_KEY: expected printable ASCII")
    assert "secret" not in shown


def test_kept_key_is_made_once_for_its_owner_only(tmp_path):
    state_dir = tmp_path / "a" / "state"
    prepare_state_dir(state_dir)
    key = kept_key(state_dir)
    prepare_state_dir(state_dir)
    assert kept_key(state_dir) == key
    assert len(key) >= 32
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((state_dir / "api_key").stat().st_mode) == 0o600
    assert (state_dir / ".gitignore").read_text() == "*\n"


def test_two_state_folders_have_two_keys(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    prepare_state_dir(first)
    prepare_state_dir(second)
    assert kept_key(first) != kept_key(second)


def test_folder_that_is_there_already_is_not_hidden_from_git(tmp_path):
    prepare_state_dir(tmp_path)
    assert not (tmp_path / ".gitignore").exists()


def test_empty_key_file_is_refused_by_name(tmp_path):
    (tmp_path / "api_key").touch()
    with pytest.raises(EmulatorError, match="api_key: expected"):
        kept_key(tmp_path)


def test_state_folder_that_cannot_be_made_is_refused_by_name(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EmulatorError, match="file"):
        prepare_state_dir(tmp_path / "file")


def test_version_is_that_of_the_distribution(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"runpod-emulator {version('runpod-emulator')}\n"


@pytest.mark.parametrize("source", KeySource)
def test_welcome_never_shows_the_key(source, tmp_path):
    made = EmulatorSettings(
        endpoints=(EndpointSettings(id="demo", command=("sh",)),),
        api_key="secret",
        state_dir=tmp_path / "it's here",
        database=tmp_path / "jobs.db",
    )
    text = welcome(made, "http://127.0.0.1:1/v2", source)
    assert "secret" not in text
    assert 'runpod.endpoint_url_base = "http://127.0.0.1:1/v2"' in text
    assert "http://127.0.0.1:1/v2/demo/runsync" in text
    assert ("api_key" in text.partition("Python:")[0]) is (source is KeySource.KEPT)
    assert ("RUNPOD_EMULATOR_API_KEY" in text) is (source is not KeySource.KEPT)
    in_shell = f"$(cat {shlex.quote(str(made.state_dir / 'api_key'))})"
    assert (in_shell in text) is (source is KeySource.KEPT)


def record(**extra):
    return logging.makeLogRecord(
        {"name": "runpod_emulator.x", "levelname": "INFO", "msg": "job %s", "args": ("taken",)}
        | extra
    )


def test_log_line_of_text_ends_with_what_is_extra():
    line = TextFormatter().format(record(job_id="1", worker="w"))
    assert line.endswith("INFO job taken  job_id=1 worker=w")
    assert TextFormatter().format(record()).endswith("INFO job taken")


def test_log_line_of_json_holds_what_is_extra():
    line = json.loads(JsonFormatter().format(record(path=Path("/x"), created=0.0)))
    assert line == {
        "time": "1970-01-01T00:00:00+00:00",
        "level": "INFO",
        "logger": "runpod_emulator.x",
        "message": "job taken",
        "path": "/x",
    }


def test_log_line_of_json_is_one_line_with_an_exception():
    try:
        raise ValueError("boom")
    except ValueError:
        line = JsonFormatter().format(record(exc_info=sys.exc_info()))
    assert "\n" not in line
    assert "ValueError: boom" in json.loads(line)["exception"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show_progress(stream):
    now = iter((7.0, 10.0, 12.0))
    progress = Progress(stream, clock=lambda: next(now))
    progress.show("a", JobStatus.IN_QUEUE)
    progress.show("a", JobStatus.IN_QUEUE)
    progress.show("a", JobStatus.IN_PROGRESS)
    progress.clear()
    return stream.getvalue()


def test_progress_in_a_file_is_a_line_for_each_news():
    assert show_progress(io.StringIO()) == "a: IN_QUEUE\na: IN_PROGRESS\n"


def test_progress_on_a_terminal_is_one_line_that_is_written_over():
    assert show_progress(Terminal()) == (
        "\r\x1b[Ka: IN_QUEUE 0 s\r\x1b[Ka: IN_QUEUE 3 s\r\x1b[Ka: IN_PROGRESS 0 s\r\x1b[K"
    )
