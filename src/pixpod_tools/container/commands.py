"""Programs that an image is built with: run, and their failures in our words."""

import shlex
import subprocess
from collections.abc import Sequence

COMMAND_WORDS = 4
"""How much of a command an error shows."""


class ImageError(Exception):
    """An image cannot be built or looked into; the text says why and what to do."""


def run(command: Sequence[str]) -> None:
    """Run it, its output as it comes. Raises ImageError."""
    _finished(command, capture=False)


def output(command: Sequence[str]) -> str:
    """What it prints. Raises ImageError, with what it said on standard error."""
    return _finished(command, capture=True).stdout or ""


def _finished(command: Sequence[str], *, capture: bool) -> "subprocess.CompletedProcess[str]":
    try:
        done = subprocess.run(command, text=True, capture_output=capture, check=False)
    except FileNotFoundError as exc:
        raise ImageError(f"{command[0]} is not installed: docs/container.md names it") from exc
    if done.returncode:
        said = (done.stderr or "").strip()[-2000:]
        begun = shlex.join(command[:COMMAND_WORDS])
        raise ImageError(f"{begun} ...: exit status {done.returncode}. {said}".rstrip())
    return done
