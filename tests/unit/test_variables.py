"""The table of settings: names in the repository, unknown and renamed names, defaults, the page."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.read_variables import Reads, ours_and_platforms, variables_of

import pixpod_tools.deploy.cli as deploy_cli
import runpod_emulator.command_line.cli as emulator_cli
from pixpod.errors import InvalidSettings
from pixpod.settings import RENAMED, VARIABLES, Settings, keep_sdk_quiet
from pixpod_tools.generate.platform_variables import PLATFORM_VARIABLES, Program
from runpod_emulator.settings import EndpointSettings

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "docs", "tests", "scripts", ".ci", ".runpod")
FILES = ("README.md", "Dockerfile", "handler.py", "pyproject.toml")
NAME = re.compile(r"(?<![A-Z_])PIXPOD_[A-Z][A-Z0-9_]*")
OLD_NAMES_IN = ("src/pixpod/settings.py", "tests/unit/test_variables.py")
UNKNOWN = "PIXPOD_" + "ACCEPTALL_LICENCES"
BUCKET = {"PIXPOD_S3_BUCKET": "images", "PIXPOD_KEY_SECRET": "secret"}


def text_files() -> Iterator[Path]:
    yield from (ROOT / file for file in FILES)
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*")):
            is_text = file.suffix in ("", ".json", ".md", ".py", ".svg", ".toml")
            if file.is_file() and is_text and ".egg-info" not in str(file):
                yield file


def test_each_name_in_the_repository_is_in_the_table():
    unknown = {
        (str(file.relative_to(ROOT)), name)
        for file in text_files()
        for name in NAME.findall(file.read_text(encoding="utf-8", errors="replace"))
        if name not in VARIABLES
        if name not in RENAMED or str(file.relative_to(ROOT)) not in OLD_NAMES_IN
    }
    assert unknown == set()


def read_by_worker(_monkeypatch) -> set[str]:
    """Return what the worker reads; which keys are looked for depends on those that are set."""
    names = set()
    for keys in ({}, {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}):
        environ = Reads(**BUCKET, **keys)
        Settings.from_env(environ)
        keep_sdk_quiet(environ)
        names |= environ.names
    return names


def read_by_deploy(monkeypatch) -> set[str]:
    monkeypatch.setattr(os, "environ", environ := Reads())
    names = ["--name=images", "--image=registry.example.org/pixpod:tiny", "--profile=tiny"]
    assert deploy_cli.main([*names, "--cpu=cpu5c", "--dry-run"]) == 0
    return environ.names


def read_by_emulator(monkeypatch) -> set[str]:
    """Return what the emulator reads. It ends before anything starts: it refuses this key, and
    this host if it reads no key.
    """
    monkeypatch.setattr(os, "environ", environ := Reads(RUNPOD_EMULATOR_API_KEY="with space"))
    flags = ["--handler", str(ROOT / "handler.py"), "--host", "0.0.0.0"]
    assert emulator_cli.main(flags) == emulator_cli.STATUS_USAGE
    endpoint = EndpointSettings(id="images", command=("true",), env=(given := Reads()))
    assert endpoint.start_limit_s > 0
    return environ.names | given.names


@pytest.mark.parametrize(
    ("program", "read_by"),
    [
        (Program.WORKER, read_by_worker),
        (Program.DEPLOY, read_by_deploy),
        (Program.EMULATOR, read_by_emulator),
    ],
)
def test_program_reads_its_variables_and_no_others(program, read_by, monkeypatch):
    with monkeypatch.context() as patch:
        found = ours_and_platforms(read_by(patch))
    assert found == variables_of(program)


def test_each_variable_has_a_program():
    assert all(each.read_by for each in PLATFORM_VARIABLES.values())


def test_accepted_values_of_the_table_are_those_of_a_refusal():
    """A question mark is no value of any variable but those that take any text."""
    keys = {"PIXPOD_S3_ACCESS_KEY_ID": "id", "PIXPOD_S3_SECRET_ACCESS_KEY": "secret"}
    unlike = {}
    for name, variable in VARIABLES.items():
        try:
            Settings.from_env({**BUCKET, **keys, name: "?"})
        except InvalidSettings as refusal:
            got = "another text" if variable.kind.is_secret else "'?'"
            expected = f"{name}: expected {variable.kind.accepted}, got {got}"
            if str(refusal) != f"invalid_settings: {expected}".replace("`", ""):
                unlike[name] = str(refusal)
        else:
            if not variable.kind.accepted.startswith(("a path", "a text", "comma-separated")):
                unlike[name] = f"takes '?', not only {variable.kind.accepted}"
    assert unlike == {}


@pytest.mark.parametrize(
    ("name", "default"),
    [(name, each.default) for name, each in VARIABLES.items() if each.default is not None],
)
def test_default_of_the_table_is_the_default(name, default):
    assert Settings.from_env({**BUCKET, name: default}) == Settings.from_env(BUCKET)


def test_each_variable_has_a_default_or_says_what_applies_instead():
    for name, variable in VARIABLES.items():
        assert (variable.default is None) == bool(variable.no_default), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (UNKNOWN, f"{UNKNOWN} is not a setting: did you mean PIXPOD_ACCEPT_LICENCES?"),
        ("PIXPOD_" + "MODLES", "PIXPOD_" + "MODLES is not a setting: did you mean PIXPOD_MODELS?"),
        *(
            (old, f"{old} is not a setting: it was renamed to {new}")
            for old, new in RENAMED.items()
        ),
    ],
)
def test_unknown_name_is_refused_with_the_right_one(name, message):
    with pytest.raises(InvalidSettings) as refusal:
        Settings.from_env({name: "1"})
    assert str(refusal.value).endswith(message)


def test_name_like_no_setting_is_refused_with_the_list():
    with pytest.raises(InvalidSettings, match=r"expected one of PIXPOD_WEIGHTS_DIR, .*LOG_LEVEL"):
        Settings.from_env({"PIXPOD_" + "QZ": ""})


def test_value_of_an_unknown_name_is_not_shown():
    with pytest.raises(InvalidSettings) as refusal:
        Settings.from_env({"PIXPOD_" + "S3_SECRET": "hidden"})
    assert "hidden" not in str(refusal.value)


def test_names_of_others_are_not_looked_at():
    Settings.from_env({"PIXPODX": "1", "MY_PIXPOD_" + "THING": "1"})
