"""The distribution `runpod-emulator`: its wheel, installed where there is nothing else.

The acceptance tests install from what this machine's pip reaches, and report the size.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "src" / "runpod_emulator"
README = (SOURCE / "README.md").read_text(encoding="utf-8")
BASE_URL = "http://127.0.0.1:8008/v2"
LIMIT_S = 120
INSTALL_LIMIT_S = 900

HANDLER = """
import json
import runpod

GREETING = json.load(open("greeting.json"))

runpod.serverless.start({"handler": lambda job: f"{GREETING}, {job['input']['name']}"})
"""
CLIENT = """
import os, runpod
runpod.api_key = os.environ["RUNPOD_API_KEY"]
print(runpod.Endpoint("words").run_sync({"name": "world"}, timeout=100))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since setuptools leaves folders where it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(SOURCE, folder / "source", ignore=ignored)
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "."]
    run(sys.executable, *command, "./source", cwd=folder)
    (wheel,) = folder.glob("runpod_emulator-*.whl")
    return wheel


def run(*command, cwd, limit_s=LIMIT_S, **keywords):
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=limit_s, **keywords
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_every_file_that_it_needs_and_no_other(wheel):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    modules = {
        str(path.relative_to(SOURCE.parent))
        for path in SOURCE.rglob("*.py")
        if "build" not in path.parts
    }
    data = {"runpod_emulator/py.typed", "runpod_emulator/workers/prices.toml"}
    assert names == modules | data
    requirements = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*(;.*)?$", text, re.MULTILINE)
    assert [name for name, condition in requirements if not condition] == ["aiohttp", "pydantic"]
    assert re.findall(r"^Provides-Extra: (.*)$", text, re.MULTILINE) == ["sdk", "metrics"]


def test_only_versions_that_tests_run_on_are_classified():
    text = (SOURCE / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r"Programming Language :: Python :: ([\d.]+)", text) == ["3.11"]


def test_licence_is_that_of_the_repository():
    assert (SOURCE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def installed(folder, *requirements):
    """A virtual environment with nothing but these, and the megabytes that they take."""
    run(sys.executable, "-m", "venv", str(folder), cwd=folder.parent)
    before = size_mb(folder)
    command = [folder / "bin" / "pip", "install", "-q", *requirements]
    run(*map(str, command), cwd=folder.parent, limit_s=INSTALL_LIMIT_S)
    return size_mb(folder) - before


def size_mb(folder):
    return sum(path.lstat().st_size for path in folder.rglob("*")) / 1e6


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare") / "venv"
    check_size("bare wheel", installed(folder, wheel), r"own \(about (\d+) MB\)")
    return folder


@pytest.fixture(scope="module")
def with_sdk(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("with_sdk") / "venv"
    check_size("with [sdk]", installed(folder, f"{wheel}[sdk]"), r"takes about (\d+) MB")
    return folder


def check_size(what, size, pattern):
    """Print a size in megabytes, and compare it with the README's."""
    stated = re.search(pattern, README)
    assert stated
    print(f"\n{what}: {size:.0f} MB installed, {stated[1]} MB in the README")
    assert size == pytest.approx(int(stated[1]), rel=0.1)


@pytest.fixture
def project(tmp_path, request):
    """A project in one of the README's layouts, named by its key there."""
    folder = tmp_path / "words"
    path = folder / ("handler.py" if request.param == "handler.py" else "src/handler.py")
    path.parent.mkdir(parents=True)
    path.write_text(HANDLER, encoding="utf-8")
    (folder / "greeting.json").write_text('"hello"', encoding="utf-8")
    return folder


def in_shell(venv, script, folder, **keywords):
    """Arguments for a shell in which the environment is active, as a user would have it."""
    return {
        "args": ["sh", "-c", f". '{venv}/bin/activate'\n{script}"],
        "cwd": folder,
        "env": {"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        "text": True,
        **keywords,
    }


def start_of(layout):
    """The command that the README's table gives for a layout."""
    found = re.search(rf"^\| `{re.escape(layout)}` \| `(.*)` \|$", README, re.MULTILINE)
    assert found, layout
    return found[1]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def started(venv, folder, command):
    """The emulator, on a port that is free instead of the README's."""
    port = free_port()
    command = command.replace("runpod-emulator", f"exec runpod-emulator --port {port}", 1)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(**in_shell(venv, command, folder, stdout=log, stderr=log))
    try:
        wait_for(port, process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(LIMIT_S) == 0, (folder / "log").read_text()


def wait_for(port, process, log):
    deadline = time.monotonic() + LIMIT_S
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)


def export_line():
    (line,) = re.findall(r"^export .*$", README, re.MULTILINE)
    assert BASE_URL in line
    return line


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("project", "layout"),
    [(name, name) for name in ("handler.py", "src/handler.py", "python -m src.handler")],
    indirect=["project"],
)
def test_project_of_another_runs_as_the_readme_says(with_sdk, project, layout):
    with started(with_sdk, project, start_of(layout)) as url:
        export = export_line().replace(BASE_URL, f"{url}/v2")
        script = f"{export}\npython - <<'END'\n{CLIENT}\nEND"
        done = subprocess.run(
            **in_shell(with_sdk, script, project, capture_output=True, timeout=LIMIT_S)
        )
        log = (project / "log").read_text()
        assert done.stdout == "hello, world\n", done.stderr + log
    for event in ("job queued", "job taken", "job ended"):
        assert event in log


@pytest.mark.acceptance
def test_environment_with_the_sdk_has_no_torch(with_sdk):
    listed = json.loads(
        run(str(with_sdk / "bin" / "pip"), "list", "--format", "json", cwd=with_sdk)
    )
    names = {each["name"].lower() for each in listed}
    assert {"runpod-emulator", "runpod"} <= names
    assert not {"torch", "diffusers", "transformers", "pixpod"} & names


@pytest.mark.acceptance
@pytest.mark.parametrize("project", ["handler.py"], indirect=True)
def test_bare_wheel_says_what_is_missing(bare, project):
    done = subprocess.run(
        **in_shell(bare, "runpod-emulator", project, capture_output=True, timeout=LIMIT_S)
    )
    assert done.returncode == 2
    assert f"{bare}/bin/python -m pip install runpod" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.acceptance
@pytest.mark.parametrize("project", ["handler.py"], indirect=True)
def test_bare_wheel_starts(bare, project):
    with started(bare, project, "runpod-emulator -- sleep 100") as url:
        with urllib.request.urlopen(url, timeout=LIMIT_S) as page:
            assert b"RunPod emulator" in page.read()
        key = (project / ".runpod_emulator" / "api_key").read_text()
        request = urllib.request.Request(
            f"{url}/emulator/metrics", headers={"Authorization": f"Bearer {key}"}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=LIMIT_S)
        with refused.value as answer:
            assert answer.status == 501
            assert "runpod-emulator[metrics]" in json.load(answer)["error"]
