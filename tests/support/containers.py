"""The tiny image, built once, and what can be asked of its containers."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.missing import end_test_without

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("podman", "mmdebstrap", "runc")
IMAGE = "localhost/pixpod:test"
WEIGHTS_STAGE = "localhost/pixpod:test-weights"


def need_containers() -> None:
    """Skip where the tools are not installed; CI must have them."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        end_test_without(f"{', '.join(missing)} (docs/container.md)")


def podman(*arguments: str, status: int = 0, cwd: Path = ROOT) -> str:
    """What it prints; it must end with this status."""
    run = subprocess.run(
        ("podman", *arguments), capture_output=True, text=True, timeout=300, cwd=cwd
    )
    assert run.returncode == status, f"podman {arguments[0]}: {run.returncode}: {run.stderr}"
    return run.stdout


def inspect(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(podman("inspect", container))[0]
    return found


def process_status(container: str) -> dict[str, str]:
    """/proc/PID/status of the container's first process, as the host sees it."""
    pid = inspect(container)["State"]["Pid"]
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def containers_named(prefix: str) -> list[str]:
    return podman("ps", "--all", "--format={{.Names}}", f"--filter=name=^{prefix}").split()


@contextmanager
def removed_at_the_end(prefix: str) -> Iterator[None]:
    try:
        yield
    finally:
        for name in containers_named(prefix):
            podman("rm", "--force", "--time=0", name)
