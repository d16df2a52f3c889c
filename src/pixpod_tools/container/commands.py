"""Runs the programs that build an image, and translates their failures."""

import shlex
import subprocess
from collections.abc import Sequence

COMMAND_WORDS = 4
"""Number of a command's words that an error shows."""


class ImageError(Exception):
    """An image cannot be built or inspected; the text says why and what to do."""


def run(command: Sequence[str]) -> None:
    """Run a command, and show its output at once. Raises ImageError."""
    _finished(command, capture=False)


def output(command: Sequence[str]) -> str:
    """Return a command's standard output. Raises ImageError, with the text of standard error."""
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
