"""`--reload`: which files count as a project's sources, and what counts as a change."""

import os
import sys

import pytest

from runpod_emulator.command_line.reload import changed_files, folders_of, sources_in
from runpod_emulator.settings import EndpointSettings


@pytest.fixture
def project(tmp_path):
    for name in ("handler.py", "src/deep/model.py", "notes.txt", "output.json"):
        write(tmp_path / name)
    return tmp_path


def write(path, text="1"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_python_files_of_the_project_are_its_sources(project):
    expected = {str(project / "handler.py"), str(project / "src/deep/model.py")}
    assert sources_in((project,)).keys() == expected


@pytest.mark.parametrize("folder", [".venv", ".runpod_emulator", "__pycache__", "node_modules"])
def test_folders_of_tools_are_left_out(project, folder):
    write(project / folder / "deep" / "module.py")
    assert len(sources_in((project,))) == 2


def test_virtual_environment_of_any_name_is_left_out(project):
    write(project / "my_env" / "pyvenv.cfg")
    write(project / "my_env" / "lib" / "module.py")
    assert len(sources_in((project,))) == 2


def test_new_gone_and_different_files_are_changes(project):
    before = sources_in((project,))
    assert changed_files(before, sources_in((project,))) == []
    new = write(project / "new.py")
    gone, different = project / "handler.py", project / "src/deep/model.py"
    gone.unlink()
    os.utime(different, (1, 1))
    assert changed_files(before, sources_in((project,))) == sorted([new, str(gone), str(different)])


def test_handler_outside_of_the_working_directory_is_watched_too(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def folders(handler):
        command = (sys.executable, "-u", str(handler))
        return folders_of(EndpointSettings(id="a", command=command, workdir=project))

    assert folders(project / "src" / "handler.py") == (project,)
    assert folders(elsewhere / "handler.py") == (project, elsewhere)
