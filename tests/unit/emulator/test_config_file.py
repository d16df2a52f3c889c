"""A configuration file: what it may say, what is refused, and where its paths lead."""

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from runpod_emulator.behaviour import Behaviour, LateProgress
from runpod_emulator.command_line.config_file import (
    DEFAULT_PORT,
    parse_configuration,
    read_config_file,
)
from runpod_emulator.errors import ConfigurationProblems, EmulatorError
from runpod_emulator.settings import EndpointSettings, Scaler

WHOLE = """
[emulator]
host = "127.0.0.2"
port = 9000
db = "jobs/kept.db"
state_dir = "state"
rate_limits = false
echo_logs = false
seed = 7

[behaviour]
poll_hold_s = 2
late_progress = "reopen"
execution_timeout_status = "TIMED_OUT"
max_run_bytes = 1_000

[endpoints.pictures]
handler = "pictures/handler.py"
workers_min = 1
workers_max = 2
idle_timeout_s = 1.5
scaler = "REQUEST_COUNT"
scaler_value = 3
capacity = 2
gpu = "NVIDIA H100 80GB HBM3"
env = { MODE = "fast" }

[endpoints.words]
command = ["sh", "run.sh", "quick"]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "handler.py").touch()
    (tmp_path / "run.sh").touch()
    return tmp_path


def read(folder, text):
    path = folder / "emulator.toml"
    path.write_text(text, encoding="utf-8")
    return read_config_file(path, {})


def problems(document, base=Path("/")):
    with pytest.raises(ConfigurationProblems) as caught:
        parse_configuration(document, base, {})
    return {problem.field: str(problem) for problem in caught.value.problems}


def test_whole_file_becomes_settings(folder):
    settings = read(folder, WHOLE).settings("key")
    assert (settings.host, settings.port, settings.seed) == ("127.0.0.2", 9000, 7)
    assert (settings.rate_limits, settings.echo_logs) == (False, False)
    assert settings.database == folder / "jobs" / "kept.db"
    assert settings.state_dir == folder / "state"
    assert settings.api_key == "key"
    assert settings.behaviour == Behaviour(
        poll_hold_s=2,
        late_progress=LateProgress.REOPEN,
        execution_timeout_status="TIMED_OUT",
        max_run_bytes=1000,
    )
    pictures, words = settings.endpoints
    assert pictures == EndpointSettings(
        id="pictures",
        command=(sys.executable, "-u", str(folder / "pictures" / "handler.py")),
        workers_min=1,
        workers_max=2,
        idle_timeout_s=1.5,
        scaler=Scaler.REQUEST_COUNT,
        scaler_value=3,
        capacity=2,
        gpu="NVIDIA H100 80GB HBM3",
        env={"MODE": "fast"},
        workdir=folder,
    )
    assert words == EndpointSettings(
        id="words", command=("sh", str(folder / "run.sh"), "quick"), workdir=folder
    )


def test_what_is_left_out_has_the_settings_own_defaults(folder, monkeypatch):
    monkeypatch.chdir(folder)
    settings = read(folder, "").settings("key")
    assert settings.behaviour == Behaviour()
    assert settings.port == DEFAULT_PORT
    assert settings.host == "127.0.0.1"
    assert settings.state_dir == folder / ".runpod_emulator"
    assert settings.database == folder / ".runpod_emulator" / "jobs.db"
    assert settings.rate_limits


def test_database_lies_in_a_chosen_state_folder(folder):
    settings = read(folder, '[emulator]\nstate_dir = "state"').settings("key")
    assert settings.database == folder / "state" / "jobs.db"


def test_absolute_paths_stay(folder):
    settings = read(folder, '[emulator]\nstate_dir = "/somewhere"').settings("key")
    assert settings.state_dir == Path("/somewhere")


def test_other_configuration_overrides_setting_by_setting(folder):
    flags = parse_configuration(
        {"emulator": {"port": 1}, "behaviour": {"poll_hold_s": 3}}, folder, {}
    )
    settings = read(folder, WHOLE).overridden_by(flags).settings("key")
    assert (settings.port, settings.seed) == (1, 7)
    assert settings.behaviour.poll_hold_s == 3
    assert settings.behaviour.max_run_bytes == 1000
    assert len(settings.endpoints) == 2


def test_every_field_of_the_settings_can_be_set():
    defaults = Behaviour()
    behaviour = {each.name: getattr(defaults, each.name) for each in fields(Behaviour)}
    assert parse_configuration({"behaviour": behaviour}, Path("/"), {}).settings("").behaviour == (
        defaults
    )


def test_all_problems_are_reported_at_once(folder):
    found = problems(
        {
            "emulator": {"prt": 1, "port": "80"},
            "behaviour": {"max_retry": 2, "late_progress": "reopne"},
            "endpoints": {"a": {"handler": "none.py", "gpu_cout": 1}, "b": {}},
            "endpoint": {},
        },
        folder,
    )
    assert found == {
        "emulator.prt": "emulator.prt: expected port (there is no 'prt')",
        "emulator.port": "emulator.port: expected a whole number, got '80'",
        "behaviour.max_retry": (
            "behaviour.max_retry: expected max_retries (there is no 'max_retry')"
        ),
        "behaviour.late_progress": (
            "behaviour.late_progress: expected 'drop' or 'reopen', got 'reopne'"
        ),
        "endpoints.a.handler": (
            "endpoints.a.handler: expected a Python file that exists; "
            "start anything else by a command, got 'none.py'"
        ),
        "endpoints.a.gpu_cout": (
            "endpoints.a.gpu_cout: expected gpu_count (there is no 'gpu_cout')"
        ),
        "endpoints.b": "endpoints.b: expected either handler or command",
        "endpoint": "endpoint: expected endpoints (there is no 'endpoint')",
    }


def test_name_that_is_like_no_other_gets_all_that_there_are():
    found = problems({"emulator": {"zzz": 1}})
    assert "host or port" in found["emulator.zzz"]


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("behaviour", "poll_hold_s", 0),
        ("behaviour", "poll_hold_s", 90),
        ("behaviour", "ping_interval_s", 0.5),
        ("behaviour", "ping_interval_s", float("inf")),
        ("behaviour", "ping_interval_s", float("nan")),
        ("behaviour", "max_retries", -1),
        ("behaviour", "max_retries", 1.5),
        ("behaviour", "queue_limit", 1),
        ("behaviour", "oversize_status", 200),
        ("behaviour", "execution_timeout_status", "COMPLETED"),
        ("emulator", "port", 65536),
        ("emulator", "port", True),
        ("emulator", "db", 1),
        ("emulator", "rate_limits", "no"),
    ],
)
def test_value_that_cannot_work_is_refused(table, field, value):
    assert problems({table: {field: value}}).keys() == {f"{table}.{field}"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workers_max", -1),
        ("idle_timeout_s", -1),
        ("scaler", "request_count"),
        ("scaler_value", 0),
        ("execution_timeout_s", 0),
        ("gpu_count", 0),
        ("capacity", -1),
        ("env", ["A=b"]),
        ("id", "other"),
        ("command", "sh run.sh"),
    ],
)
def test_endpoint_value_that_cannot_work_is_refused(folder, field, value):
    endpoint = {"handler": "pictures/handler.py", field: value}
    assert problems({"endpoints": {"x": endpoint}}, folder).keys() == {f"endpoints.x.{field}"}


@pytest.mark.parametrize("field", ["workers_min", "idle_timeout_s", "capacity"])
def test_nothing_is_the_least_that_is_accepted(folder, field):
    endpoint = {"handler": "pictures/handler.py", field: 0}
    (made,) = parse_configuration({"endpoints": {"x": endpoint}}, folder, {}).endpoints
    assert getattr(made, field) == 0


def test_fewer_workers_than_the_least_are_refused(folder):
    endpoint = {"handler": "pictures/handler.py", "workers_min": 4}
    found = problems({"endpoints": {"x": endpoint}}, folder)
    assert found["endpoints.x"].endswith("workers_min of at most workers_max, which are 4 and 3")


def test_handler_and_command_together_are_refused(folder):
    endpoint = {"handler": "pictures/handler.py", "command": ["sh"]}
    assert problems({"endpoints": {"x": endpoint}}, folder).keys() == {"endpoints.x"}


@pytest.mark.parametrize("handler", ["pictures", "run.sh", "pictures/other.py"])
def test_handler_is_a_python_file_that_exists(folder, handler):
    found = problems({"endpoints": {"x": {"handler": handler}}}, folder)
    assert found.keys() == {"endpoints.x.handler"}


def test_command_names_a_program(folder):
    found = problems({"endpoints": {"x": {"command": ["no-such-program"]}}}, folder)
    assert "'no-such-program'" in found["endpoints.x.command"]
    assert problems({"endpoints": {"x": {"command": []}}}, folder)


def test_program_in_a_folder_gets_its_absolute_path(folder):
    program = folder / "pictures" / "start"
    program.touch(mode=0o700)
    document = {"endpoints": {"x": {"command": ["pictures/start", "pictures"]}}}
    (made,) = parse_configuration(document, folder, {}).endpoints
    assert made.command == (str(program), "pictures")


@pytest.mark.parametrize("key", ["", "a b", "a/b", "../a", "-a", "x" * 64])
def test_id_that_would_not_fit_into_an_address_is_refused(folder, key):
    found = problems({"endpoints": {key: {"handler": "pictures/handler.py"}}}, folder)
    assert "at most 63 letters" in next(iter(found.values()))


def test_values_of_the_environment_are_never_shown(folder):
    endpoint = {"handler": "pictures/handler.py", "env": {"TOKEN": 4711}}
    found = problems({"endpoints": {"x": endpoint}}, folder)
    assert found == {"endpoints.x.env.TOKEN": "endpoints.x.env.TOKEN: expected text"}


@pytest.mark.parametrize("content", [b"[emulator", b"\xff", b"port = \n"])
def test_file_that_is_no_toml_is_refused_by_name(tmp_path, content):
    path = tmp_path / "emulator.toml"
    path.write_bytes(content)
    with pytest.raises(EmulatorError, match=r"emulator\.toml: cannot be read as TOML"):
        read_config_file(path, {})


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(EmulatorError, match=r"emulator\.toml"):
        read_config_file(tmp_path / "emulator.toml", {})
