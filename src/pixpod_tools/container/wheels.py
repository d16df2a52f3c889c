"""Fetches the locked packages as a folder of wheels with this machine's own pip.

A build then needs no package index, and none of this machine's settings for one: mirrors, folders
of wheels and certificates stay out of the image.
"""

import hashlib
import shutil
import sys
import tomllib
from pathlib import Path

from pixpod_tools.container.commands import run

BUILD_TOOLS = ("cyclonedx-bom",)
"""Packages that the Dockerfile installs beside the dependencies."""


def provide_wheels(root: Path, folder: Path, python_version: str) -> None:
    """Fill `folder` for this repository's constraints; takes a minute unless it is up to date.

    Raises ImageError.
    """
    stamp = folder / "fetched"
    wanted = _digest(root, python_version)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pip = (sys.executable, "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check")
    choice = ("--only-binary", ":all:", "--python-version", python_version)
    locked = ("--constraint", str(root / "constraints.txt"))
    wanted_packages = (*project["dependencies"], *BUILD_TOOLS)
    run((*pip, "download", *choice, *locked, "--dest", str(folder), *wanted_packages))
    stamp.write_text(wanted, encoding="utf-8")


def _digest(root: Path, python_version: str) -> str:
    texts = [(root / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    named = " ".join((python_version, *BUILD_TOOLS)).encode()
    return hashlib.sha256(b"\0".join([*texts, named])).hexdigest()
