"""Builds an image from the repository's Dockerfile with podman."""

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pixpod_tools.container.base import LOCAL_BASE, LOCAL_PYTHON, provide_local_base
from pixpod_tools.container.commands import run
from pixpod_tools.container.wheels import provide_wheels


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """The image to build. `base_image` None is the Dockerfile's own; `target` None is all stages.

    `is_local` builds on a base image and from wheels that this machine provides. `extras` are
    those beside the profile's, separated by blanks, and `catalog` is a file in `model_cache` that
    has them.
    """

    root: Path
    profile: str
    tag: str
    is_local: bool = False
    base_image: str | None = None
    target: str | None = None
    hf_token_file: Path | None = None
    accepted_licences: str = ""
    extras: str = ""
    catalog: str = ""
    pip_options: str = ""

    @property
    def wheels(self) -> Path:
        return self.root / "build" / "image" / "wheels"


def build(settings: BuildSettings) -> None:
    """Build the image. Raises ImageError."""
    if settings.is_local:
        with ThreadPoolExecutor() as pool:
            parts = (
                pool.submit(provide_local_base),
                pool.submit(provide_wheels, settings.root, settings.wheels, LOCAL_PYTHON),
            )
        for part in parts:
            part.result()
    run(tuple(build_command(settings)))


def build_command(settings: BuildSettings) -> Iterator[str]:
    """Yield the arguments of `podman build`, without this machine's environment and mounts.

    A mount would leave its mount point behind in the layers.
    """
    yield from ("podman", "build", "--layers", "--format=docker", "--isolation=chroot")
    yield f"--tag={settings.tag}"
    arguments = {
        "PROFILE": settings.profile,
        "VERSION": _version(settings.root),
        "REVISION": _revision(settings.root),
        "ACCEPT_LICENCES": settings.accepted_licences,
        "EXTRAS": settings.extras,
        "CATALOG": settings.catalog,
        "PIP_OPTIONS": settings.pip_options,
    }
    if settings.is_local:
        # the machine's own wheels, of which torch may be a build for CPUs
        arguments |= {
            "BASE_IMAGE": LOCAL_BASE,
            "PIP_OPTIONS": "--no-index",
            "REQUIRE_HASHES": "false",
        }
        yield from ("--pull=never", f"--build-context=wheels={settings.wheels}")
    elif settings.base_image is not None:
        arguments["BASE_IMAGE"] = settings.base_image
    yield from (f"--build-arg={name}={value}" for name, value in arguments.items() if value)
    if settings.hf_token_file is not None:
        yield f"--secret=id=hf_token,src={settings.hf_token_file}"
    if settings.target is not None:
        yield f"--target={settings.target}"
    yield str(settings.root)


def _version(root: Path) -> str:
    text = (root / "src" / "pixpod" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return found[1] if found else ""


def _revision(root: Path) -> str:
    """Return the checkout's git revision; empty without one."""
    command = ("git", "-C", str(root), "rev-parse", "HEAD")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
