"""Starts sides and gives them orders."""

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pixpod_bench.load.jobs import MODELS, worker_environ
from pixpod_bench.machine import ROOT, environment

SCRIPT = Path(__file__).with_name("side.py")
LIMIT_S = 600.0
"""Time limit of one order."""


class SideFailed(Exception):
    """A side answered a job with an error, or ended, so that its figures would mean nothing."""


class RunningSide:
    """The worker of one checkout, idle unless it has an order."""

    def __init__(self, process: "subprocess.Popen[str]", errors: IO[str]) -> None:
        self._process = process
        self._errors = errors

    def order(self, name: str, **order: object) -> dict[str, Any]:
        """Give an order, and return the answer. Raises SideFailed. Any: a JSON document."""
        assert self._process.stdin
        assert self._process.stdout
        limit = threading.Timer(LIMIT_S, self._process.kill)
        limit.start()
        try:
            self._process.stdin.write(json.dumps({"order": name, **order}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            limit.cancel()
        if not line:
            self._errors.seek(0)
            lines = [text.strip() for text in self._errors if text.strip()]
            raise SideFailed(f"{name}: {lines[-1] if lines else 'it ended without a message'}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def running_side(root: Path = ROOT, models: Sequence[str] = MODELS) -> Iterator[RunningSide]:
    """Start the worker of the checkout at `root`, which serves its own tiny models."""
    weights = str(root / "model_cache")
    given = worker_environ(PIXPOD_WEIGHTS_DIR=weights, PIXPOD_MODELS=",".join(models))
    command = [sys.executable, str(SCRIPT), json.dumps(given)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(  # noqa: S603 (our own arguments, no shell)
            command,
            env=environment(root=root),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield RunningSide(process, errors)
        finally:
            process.kill()
            process.communicate()
