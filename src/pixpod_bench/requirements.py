"""Packages that a borrowed CUDA machine may lack: found, and installed from a folder of wheels.

Standard library only, because it runs before anything else can be imported.
"""

import subprocess
import sys
from importlib import metadata
from pathlib import Path


class MissingPackages(Exception):
    """Packages are not installed and no folder of wheels was named."""


def read_pins(requirements: Path) -> dict[str, str]:
    """Version by name from `name==version` lines."""
    lines = (line.partition("#")[0].strip() for line in requirements.read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def find_missing(pins: dict[str, str]) -> dict[str, str]:
    """Those that are not installed, or older than their pin; a newer version is left alone."""
    return {name: pin for name, pin in pins.items() if not _is_installed(name, pin)}


def provide(requirements: Path, wheels: Path | None, site: Path) -> None:
    """Make all of `requirements` importable, here and with `site` first on PYTHONPATH.

    Missing ones are installed from `wheels` into `site`, never into the interpreter's own
    packages. Raises MissingPackages if there are some and no wheels.
    """
    sys.path.insert(0, str(site))
    pins = find_missing(read_pins(requirements))
    missing = [f"{name}=={pin}" for name, pin in pins.items()]
    if not missing:
        return
    if wheels is None:
        raise MissingPackages(
            f"not installed, or older: {', '.join(missing)}. Type: {sys.executable} -m pip install "
            f"--no-deps {' '.join(missing)}  (or name a folder of wheels with --wheels)"
        )
    _install(missing, wheels, site)


def add_optional(requirements: Path, wheels: Path | None, site: Path) -> None:
    """Install those of `requirements` that the wheels have; nobody misses the others."""
    if wheels is None:
        return
    pins = find_missing(read_pins(requirements))
    carried = [
        f"{name}=={pin}"
        for name, pin in pins.items()
        if any(wheels.glob(f"{name.replace('-', '_')}-{pin}-*.whl"))
    ]
    if carried:
        _install(carried, wheels, site)


def _install(pins: list[str], wheels: Path, site: Path) -> None:
    options = ["--quiet", "--no-index", "--no-deps", "--no-cache-dir", "--upgrade"]
    command = [sys.executable, "-m", "pip", "install", *options]
    command += ["--find-links", str(wheels), "--target", str(site), *pins]
    subprocess.run(command, check=True)  # noqa: S603 (pins and paths, no shell)


def _is_installed(name: str, pin: str) -> bool:
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return _numbers(found) >= _numbers(pin)


def _numbers(version: str) -> tuple[int, ...]:
    """`0.18.0+cu130` to (0, 18, 0)."""
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())
