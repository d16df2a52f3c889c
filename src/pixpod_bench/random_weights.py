"""Makes weights directories with random numbers once, by `scripts/bake`, and reuses them."""

import subprocess
import sys
from pathlib import Path

from pixpod.weights.manifest import MANIFEST, read_manifest
from pixpod_bench.machine import environment


def bake(folder: Path, model: str, size_gb: int | None = None) -> None:
    """Write random weights of one model, unless the folder has it.

    `size_gb` makes a FLUX with fewer blocks. Raises CalledProcessError.
    """
    if (folder / MANIFEST).exists() and model in read_manifest(folder):
        return
    size = ["--size-gb", str(size_gb)] if size_gb else []
    command = [sys.executable, "-m", "pixpod_tools.bake.cli", "--random", model, *size]
    subprocess.run(  # noqa: S603 (our own arguments, no shell)
        [*command, "--to", str(folder)],
        env=environment({"TORCHAO_FORCE_SKIP_LOADING_SO_FILES": "1"}),
        stdout=subprocess.DEVNULL,
        check=True,
    )
