"""The CUDA image's lock files: complete, with hashes, and the versions that were tested."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WANTED = {"cuda.lock": PROJECT["dependencies"], "build.lock": ["cyclonedx-bom"]}
ENTRY = re.compile(r"(?P<pin>\S.*?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
IMAGE = {
    "python_version": "3.12",
    "python_full_version": "3.12.3",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}
CUDA_ONLY = re.compile("cuda-.*|nvidia-.*|triton")
"""Packages that torch needs on a GPU, so no build of torch for CPUs names them."""


def text_of(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#"))


def pins(name) -> dict[str, Requirement]:
    """A package that is listed with extras and without them counts as the former."""
    found = [Requirement(entry["pin"]) for entry in ENTRY.finditer(text_of(name))]
    found.sort(key=lambda pin: len(pin.extras))
    return {canonicalize_name(pin.name): pin for pin in found}


def version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    named = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in named}


def needs(pin: Requirement) -> Iterator[Requirement]:
    """Yield what an installed package needs in the image, with the extras of its pin."""
    try:
        listed = distribution(pin.name).requires or []
    except PackageNotFoundError:
        assert CUDA_ONLY.fullmatch(pin.name), "scripts/setup installs all others"
        return
    for need in map(Requirement, listed):
        extras = pin.extras or {""}
        if need.marker is None or any(
            need.marker.evaluate({**IMAGE, "extra": extra}) for extra in extras
        ):
            yield need


@pytest.mark.parametrize("name", WANTED)
def test_file_has_nothing_but_pins_with_hashes(name):
    """Neither an index nor an option, which would hold for the whole installation."""
    assert ENTRY.sub("", text_of(name)) == ""
    assert len(pins(name)) >= len(WANTED[name])


@pytest.mark.parametrize("name", WANTED)
def test_versions_are_those_that_were_tested(name):
    tested = constraints()
    locked = {package: version(pin) for package, pin in pins(name).items()}
    differ = {package: each for package, each in locked.items() if tested.get(package) != each}
    assert [package for package in differ if not CUDA_ONLY.fullmatch(package)] == []


@pytest.mark.parametrize("name", WANTED)
def test_nothing_is_missing(name):
    """pip refuses a file with a gap, or a package without the extras that another one needs."""
    locked = pins(name)
    wanted = [
        *map(Requirement, WANTED[name]),
        *(need for pin in locked.values() for need in needs(pin)),
    ]
    missing = [
        str(need)
        for need in wanted
        if (pin := locked.get(canonicalize_name(need.name))) is None
        or not need.specifier.contains(version(pin))
        or not need.extras <= pin.extras
    ]
    assert missing == [], "run scripts/lock"


def test_torch_is_the_build_for_cuda():
    locked = pins("cuda.lock")
    assert version(locked["torch"]) == "2.13.0"
    assert {"triton", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"} <= set(locked)
    assert not {"torchvision", "torchaudio", "pip"} & set(locked)


class TestDockerfile:
    """The stage that prepares the installation, run with a pip that only says what it is told."""

    @pytest.fixture
    def prepare(self, tmp_path):
        text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
        stage = text.partition(" AS tools\n")[2].partition("\nFROM ")[0]
        command = stage.partition("python3 -m venv .; \\\n")[2]
        for name in re.findall(r"^COPY (.+) \./$", stage, re.MULTILINE)[0].split():
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "python").symlink_to(sys.executable)
        (tmp_path / "bin" / "pip").write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / "bin" / "pip").chmod(0o755)

        def run(**environ):
            environ = {"PATH": "/usr/bin:/bin", "PIP_OPTIONS": "", "REQUIRE_HASHES": "", **environ}
            shell = ("/bin/bash", "-euo", "pipefail", "-c", command)
            done = subprocess.run(
                shell, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
            )
            return done.stdout, (tmp_path / "requirements.txt").read_text(encoding="utf-8")

        return run

    @pytest.mark.parametrize("profile", ["slim", "flux-schnell+sdxl"])
    def test_profiles_for_gpus_install_by_hash(self, prepare, profile):
        tools, requirements = prepare(PROFILE=profile)
        assert "--require-hashes --only-binary :all: --requirement build.lock" in tools
        lock = text_of("cuda.lock")
        assert requirements.endswith(lock)
        options = requirements.removesuffix(lock)
        assert options.splitlines()[:2] == ["--require-hashes", "--only-binary :all:"]

    @pytest.mark.parametrize(
        "environ", [{"PROFILE": "tiny"}, {"PROFILE": "slim", "REQUIRE_HASHES": "false"}]
    )
    def test_others_install_what_the_constraints_allow(self, prepare, environ):
        tools, requirements = prepare(**environ)
        assert "--constraint constraints.txt cyclonedx-bom" in tools
        expected = ["--constraint constraints.txt", *PROJECT["dependencies"]]
        assert requirements.splitlines() == expected
