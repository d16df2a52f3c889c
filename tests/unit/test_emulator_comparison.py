"""A comparison runs this checkout's benchmarks with the emulator of another one."""

import subprocess
import sys
from pathlib import Path

from pixpod_bench.emulator.comparison import only_emulator
from pixpod_bench.emulator.processes import own_environ

PRINT = "import runpod_emulator as e, pixpod_bench as b; print(e.__file__); print(b.__file__)"


def test_only_the_emulator_is_that_of_the_other_checkout(tmp_path):
    for package in ("runpod_emulator", "pixpod_bench"):
        folder = tmp_path / "src" / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    with only_emulator(tmp_path) as source:
        done = subprocess.run(
            [sys.executable, "-c", PRINT],
            env=own_environ(source),
            capture_output=True,
            text=True,
            check=True,
        )
        emulator, benchmarks = (Path(line).resolve() for line in done.stdout.splitlines())
    assert emulator == tmp_path / "src" / "runpod_emulator" / "__init__.py"
    assert not benchmarks.is_relative_to(tmp_path)
