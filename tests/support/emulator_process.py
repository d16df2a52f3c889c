"""`python -m runpod_emulator` as a process of its own, started in a project's folder."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60


def command(*arguments):
    return [sys.executable, "-m", "runpod_emulator", *map(str, arguments)]


def environ(folder):
    kept = {name: os.environ[name] for name in ("PATH",) if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), "HOME": str(folder), "TMPDIR": str(folder)}


@contextmanager
def running(folder, *arguments):
    """The process, once it has printed all that it prints at start, and that text."""
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command(*arguments),
            cwd=folder,
            env=environ(folder),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "-d " not in lines[-1]:
            line = process.stdout.readline()
            assert line, (folder / "stderr").read_text()
            lines.append(line)
        yield process, "".join(lines)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def end(process, number=signal.SIGTERM):
    process.send_signal(number)
    return process.wait(LIMIT_S)


def run(folder, *arguments):
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environ(folder),
        capture_output=True,
        text=True,
        timeout=LIMIT_S * 2,
    )


def wait_for(condition):
    deadline = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
