"""What is found in a project's folder: its handler and its Python."""

import sys
from pathlib import Path

import pytest

from runpod_emulator.command_line.flags import configuration_of, parse_flags
from runpod_emulator.command_line.project import (
    SdkMissing,
    check_sdk,
    find_handler,
    find_python,
    python_at,
)
from runpod_emulator.errors import EmulatorError

OWN = Path(sys.executable)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "words"
    (folder / "src").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def environment(path):
    """A folder like that of a virtual environment."""
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "python").symlink_to(OWN)
    return path


def endpoint(*arguments, **environ):
    (made,) = configuration_of(parse_flags(arguments), environ).endpoints
    return made


def test_handler_at_the_root_comes_before_the_one_in_src(folder):
    (folder / "src" / "handler.py").touch()
    assert find_handler(folder) == folder / "src" / "handler.py"
    (folder / "handler.py").touch()
    assert find_handler(folder) == folder / "handler.py"


def test_nothing_named_makes_an_endpoint_of_the_project(folder):
    (folder / "src" / "handler.py").touch()
    made = endpoint()
    assert made.id == "words"
    assert made.workdir == folder
    assert made.command == (str(OWN), "-u", str(folder / "src" / "handler.py"))


def test_project_is_looked_for_in_the_chosen_working_directory(folder, monkeypatch, tmp_path):
    (folder / "handler.py").touch()
    environment(folder / ".venv")
    monkeypatch.chdir(tmp_path)
    command = endpoint("--workdir", "words").command
    assert command == (str(folder / ".venv/bin/python"), "-u", str(folder / "handler.py"))


def test_active_environment_comes_before_that_of_the_project(tmp_path):
    assert find_python(tmp_path, {}, OWN) == OWN
    own = environment(tmp_path / ".venv")
    assert find_python(tmp_path, {}, OWN) == own / "bin" / "python"
    active = environment(tmp_path / "active")
    found = find_python(tmp_path, {"VIRTUAL_ENV": str(active)}, OWN)
    assert found == active / "bin" / "python"


def test_environment_that_is_gone_is_passed_over(tmp_path):
    assert find_python(tmp_path, {"VIRTUAL_ENV": str(tmp_path / "gone")}, OWN) == OWN


def test_given_python_comes_before_all(folder):
    (folder / "handler.py").touch()
    given = environment(folder / "given")
    active = environment(folder / "active")
    for name in ("given", "given/bin/python"):
        command = endpoint("--python", name, VIRTUAL_ENV=str(active)).command
        assert command[0] == str(given / "bin" / "python")


def test_python_may_be_a_name_of_the_path(folder, monkeypatch):
    (folder / "handler.py").touch()
    programs = environment(folder / "programs") / "bin"
    monkeypatch.setenv("PATH", str(programs))
    assert endpoint("--python", "python").command[0] == str(programs / "python")


@pytest.mark.parametrize("name", ["none", "src", "handler.py"])
def test_python_that_is_none_is_refused(folder, name):
    (folder / "handler.py").touch()
    with pytest.raises(ValueError, match="a Python program"):
        python_at(folder / name)
    with pytest.raises(EmulatorError, match=r"words\.python: expected a Python program"):
        endpoint("--python", name)


def test_python_beside_a_command_is_refused(folder):
    with pytest.raises(EmulatorError, match="python only with handler"):
        endpoint("--python", str(OWN), "--", "sh")


def test_sdk_is_looked_for_where_the_worker_would(tmp_path):
    """`-S` hides the packages; the worker's PYTHONPATH can show one again."""
    command = (str(OWN), "-u", "handler.py")
    check_sdk(command, {})
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {OWN} -S "$@"\n', encoding="utf-8")
    bare.chmod(0o700)
    with pytest.raises(SdkMissing, match=f"uv pip install --python {bare} runpod"):
        check_sdk((str(bare), *command[1:]), {})
    (tmp_path / "runpod.py").touch()
    (tmp_path / "pip.py").touch()
    check_sdk((str(bare), *command[1:]), {"PYTHONPATH": str(tmp_path)})
    (tmp_path / "runpod.py").unlink()
    with pytest.raises(SdkMissing, match=f"{bare} -m pip install runpod"):
        check_sdk((str(bare), *command[1:]), {"PYTHONPATH": str(tmp_path)})


def test_program_that_is_no_python_is_not_checked_for_the_sdk():
    check_sdk(("sh", "-c", "exit 1"), {})
