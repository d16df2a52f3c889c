"""The tiny image, built from nothing, and as a worker of the emulated platform."""

import json
import re
import statistics
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.containers import (
    IMAGE,
    ROOT,
    WEIGHTS_STAGE,
    containers_named,
    inspect,
    need_containers,
    podman,
    process_status,
    removed_at_the_end,
)
from support.platform import submit, wait_for
from support.tiny_models import to_pixels

from pixpod_tools.container.building import BuildSettings, build
from pixpod_tools.container.layers import save
from pixpod_tools.container.running import run_command
from pixpod_tools.tiny.checker import check
from pixpod_tools.tiny.scenes import Colour, Scene, Shape
from runpod_emulator.testing import running_emulator, settings_for

pytestmark = pytest.mark.container

TOKEN = "hf_" + "planted" * 5
"""A secret that the build is given, and nothing else may hold."""

PREFIX = "pixpod-test-"
HANDLER = ROOT / "tests" / "support" / "handlers" / "container_worker.py"
SCENE = Scene(colour=Colour.RED, shape=Shape.CIRCLE, background=Colour.BLUE)
JOB = {"input": {"model": "flux-tiny", "prompt": SCENE.caption, "seed": 7}}
USER = "10001"
GRACE_S = 60
NO_PLACES = ("/", "/app", "/weights", "/opt/venv", "/etc", "/run", "/var/tmp", "/home")
NOT_SHIPPED = (
    "runpod_emulator",
    "pixpod.testing",
    "pixpod_bench",
    "pixpod_tools",
    "pip",
    "pytest",
    "hypothesis",
    "moto",
    "mypy",
)


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "token"
    path.write_text(TOKEN, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def image(token_file):
    need_containers()
    settings = {"root": ROOT, "profile": "tiny", "is_local": True, "hf_token_file": token_file}
    build(BuildSettings(tag=IMAGE, **settings))
    build(BuildSettings(tag=WEIGHTS_STAGE, target="weights", **settings))
    return IMAGE


@pytest.fixture(scope="module")
def saved(image, tmp_path_factory):
    return save(image, tmp_path_factory.mktemp("saved") / "image")


@dataclass(frozen=True, kw_only=True)
class Served:
    """What was seen of one container that served two jobs and was drained during the second."""

    first: dict[str, Any]
    last: dict[str, Any]
    workers: set[str]
    process: dict[str, str]
    written: dict[str, str]
    ended: dict[str, Any]


@pytest.fixture(scope="module")
def served(image, tmp_path_factory):
    settings = settings_for(
        HANDLER,
        tmp_path_factory.mktemp("emulator"),
        workers_max=1,
        idle_timeout_s=300.0,
        env={
            "CONTAINER_IMAGE": image,
            "CONTAINER_PREFIX": PREFIX,
            "PYTHONPATH": str(ROOT / "src"),
            "PIXPOD_PRELOAD": "false",
        },
    )
    with removed_at_the_end(PREFIX), running_emulator(settings) as platform:
        first = wait_for(platform, submit(platform, JOB))
        (container,) = containers_named(PREFIX)
        process = process_status(container)
        written = {place: touch(container, place) for place in (*NO_PLACES, "/tmp")}
        platform.add_fault(at="job-taken", action="spot", value=GRACE_S, count=1)
        last = wait_for(platform, submit(platform, JOB))
        platform.wait_until(lambda _: not inspect(container)["State"]["Running"], GRACE_S)
        return Served(
            first=first,
            last=last,
            workers={first["workerId"], last["workerId"]},
            process=process,
            written=written,
            ended=inspect(container)["State"],
        )


def touch(container, place):
    """`written`, or why not."""
    command = ("podman", "exec", container, "touch", f"{place.rstrip('/')}/by-test")
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return "written" if run.returncode == 0 else run.stderr


def in_container(image, *command):
    """What it prints, locked down as a worker is."""
    with removed_at_the_end(f"{PREFIX}look"):
        arguments = run_command(image, name=f"{PREFIX}look", command=command)[1:]
        return podman(*arguments)


def members(saved):
    """Path of each file and folder in each layer, and whether it is a folder."""
    for layer in saved.layers:
        with tarfile.open(layer.blob) as tar:
            yield from ((f"/{entry.name.removeprefix('./')}", entry.isdir()) for entry in tar)


def test_container_generates_the_requested_image(served):
    assert served.first["status"] == "COMPLETED", served.first
    (drawn,) = served.first["output"]["images"]
    assert check(to_pixels(drawn), SCENE).is_right


def test_process_has_no_privileges(served):
    assert set(served.process["Uid"].split()) == {USER}
    assert set(served.process["Gid"].split()) == {USER}
    assert {int(served.process[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert served.process["NoNewPrivs"] == "1"


def test_only_tmp_can_be_written(served):
    assert served.written.pop("/tmp") == "written"
    for place, answer in served.written.items():
        assert "Read-only file system" in answer, f"{place}: {answer}"


def test_worker_that_is_drained_ends_its_job_and_then_itself(served):
    assert served.last["status"] == "COMPLETED", served.last
    assert len(served.workers) == 1
    assert served.ended["ExitCode"] == 0
    assert not served.ended["OOMKilled"]


def test_memory_limit_ends_a_greedy_process(image, tmp_path):
    greedy = ("python", "-c", "b'x' * (1 << 28)")
    with removed_at_the_end(f"{PREFIX}greedy"):
        command = run_command(
            image, name=f"{PREFIX}greedy", options=("--memory=64m",), command=greedy
        )
        podman(*command[1:], status=137, cwd=tmp_path)  # podman leaves a file `oom` behind


def test_token_was_given_to_the_build_but_is_in_no_layer(saved):
    told = in_container(WEIGHTS_STAGE, "cat", "/token_was_given")
    assert told.strip() == f"a token of {len(TOKEN)} bytes"
    assert list(saved.files_with(TOKEN.encode())) == []


def test_token_in_a_layer_would_be_found(token_file, tmp_path):
    need_containers()
    (tmp_path / "kept").write_bytes(token_file.read_bytes())
    lines = ("FROM scratch", "COPY kept /kept", f"LABEL token={TOKEN}")
    (tmp_path / "Dockerfile").write_text("\n".join(lines), encoding="utf-8")
    leaky = "localhost/pixpod:test-leaky"
    podman("build", "--format=docker", f"--tag={leaky}", str(tmp_path))
    image = save(leaky, tmp_path / "image")
    podman("rmi", "--force", leaky)
    assert len(list(image.files_with(TOKEN.encode()))) == 2


def test_every_source_file_has_its_bytecode(image):
    found = json.loads(in_container(image, "python", "-c", LIST_UNCOMPILED))
    assert found["looked_at"] > 5_000
    assert found["not_compiled"] == []


LIST_UNCOMPILED = """
import json, sysconfig
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path

def is_compiled(path):
    cached = Path(cache_from_source(path))
    if not cached.is_file():
        return False
    head = cached.read_bytes()[:16]
    flags, mtime = int.from_bytes(head[4:8], "little"), int.from_bytes(head[8:12], "little")
    is_fresh = flags == 1 or (flags == 0 and mtime == int(path.stat().st_mtime))
    return head[:4] == MAGIC_NUMBER and is_fresh

def can_compile(path):
    try:
        compile(path.read_bytes(), path, "exec")
    except SyntaxError:
        return False
    return True

roots = [Path("/app"), Path("/opt/venv/lib"), Path(sysconfig.get_path("stdlib"))]
found = [path for root in roots for path in root.rglob("*.py") if "lib2to3" not in path.parts]
bad = [str(path) for path in found if not is_compiled(path) and can_compile(path)]
print(json.dumps({"looked_at": len(found), "not_compiled": bad}))
"""


def test_image_holds_nothing_that_a_worker_does_not_need(image):
    found = in_container(image, "python", "-c", FIND_MODULES, *NOT_SHIPPED, "torch", "pixpod")
    assert json.loads(found) == ["torch", "pixpod"]


FIND_MODULES = """
import json, sys
from importlib.util import find_spec

sys.path.insert(0, "/app/src")
print(json.dumps([name for name in sys.argv[1:] if find_spec(name)]))
"""


def test_nothing_of_the_building_machine_is_in_the_image(saved):
    places = machine_places()
    found = dict(members(saved))
    assert {"/app/handler.py", "/weights/manifest.toml", "/opt/venv/bin/python"} < found.keys()
    assert not found.keys() & places
    left_over = ("/run/", "/root/.cache/", "/tmp/", "/baked/", "/layers/")
    files = [name for name, is_folder in found.items() if not is_folder]
    assert not [name for name in files if name.startswith(left_over)]


def machine_places():
    """What only this machine has: pip's configuration, and the folders that it names."""
    pip = (sys.executable, "-m", "pip", "config")
    listed = subprocess.run((*pip, "list"), capture_output=True, text=True, check=True).stdout
    debug = subprocess.run((*pip, "debug"), capture_output=True, text=True, check=True).stdout
    files = {name for name in re.findall(r"(\S+), exists: True", debug) if name.startswith("/")}
    named = re.findall(r"(?:file://)?(/[^\s']+)", listed)
    return files | {name for name in named if Path(name).is_dir()} | {str(ROOT)}


def test_weights_are_in_eight_layers_of_near_equal_size(saved):
    layers = [layer for layer in saved.layers if " in /weights" in layer.made_by]
    assert len(layers) == 8
    files: dict[str, int] = {}
    sizes = []
    for layer in layers:
        with tarfile.open(layer.blob) as tar:
            held = {entry.name: entry.size for entry in tar if entry.isfile()}
        assert not held.keys() & files.keys(), "each file is in one layer"
        files |= held
        sizes.append(sum(held.values()))
    assert max(sizes) <= statistics.mean(sizes) + max(files.values())
    assert {"weights/manifest.toml", "weights/flux-tiny/model_index.json"} <= files.keys()


def test_labels_name_the_source(saved):
    labels = saved.config["Labels"]
    told = {name.removeprefix("org.opencontainers.image."): text for name, text in labels.items()}
    assert told["title"] == "pixpod"
    assert told["licenses"] == "MIT"
    assert re.fullmatch(r"[0-9a-f]{40}", told["revision"])
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", told["version"])
    assert told["pixpod.profile"] == "tiny"


def test_configuration_runs_the_worker_as_a_user(saved):
    assert saved.config["User"] == f"{USER}:{USER}"
    assert saved.config["Entrypoint"] == ["/usr/bin/tini", "--"]
    assert saved.config["Cmd"] == ["python", "handler.py"]


def test_bill_of_materials_names_packages_of_each_kind(image):
    sbom = json.loads(in_container(image, "cat", "/sbom.json"))
    assert (sbom["bomFormat"], sbom["metadata"]["component"]["name"]) == ("CycloneDX", "pixpod")
    references = [component["bom-ref"] for component in sbom["components"]]
    assert len(references) == len(set(references))
    named = {component["name"]: component for component in sbom["components"]}
    assert named["torch"]["purl"].startswith("pkg:pypi/torch@2.")
    assert named["tini"]["purl"].startswith("pkg:deb/debian/tini@")
    assert named["flux-tiny"]["type"] == "machine-learning-model"
    assert named["flux-tiny"]["licenses"] == [{"license": {"name": "MIT"}}]
    assert not named.keys() & set(NOT_SHIPPED)
