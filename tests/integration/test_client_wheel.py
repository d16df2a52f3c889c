"""The distribution `pixpod-client`: its wheel, imported where pixpod is not."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "pixpod_client"
LIMIT_S = 120


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since setuptools leaves folders where it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(SOURCE, folder / "source", ignore=ignored)
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "."]
    run(*command, "./source", cwd=folder)
    (wheel,) = folder.glob("pixpod_client-*.whl")
    return wheel


def run(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_the_modules_and_needs_two_packages(wheel):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    modules = {f"pixpod_client/{path.name}" for path in SOURCE.glob("*.py")}
    assert names == modules | {"pixpod_client/py.typed"}
    requirements = re.findall(r"^Requires-Dist: ([\w-]+)", text, re.MULTILINE)
    assert requirements == ["aiohttp", "standardwebhooks"]


def test_client_imports_neither_pixpod_nor_what_it_needs(wheel, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); import pixpod_client;"
        "print(pixpod_client.__file__);"
        "print(sorted({'pixpod', 'torch', 'pydantic', 'runpod'} & sys.modules.keys()))"
    )
    file, found = run("-c", code, cwd=tmp_path).splitlines()
    assert (file.startswith(str(wheel)), found) == (True, "[]")
