"""Weights directories of random numbers, made once by `scripts/bake` and used again."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pixpod.manifest import MANIFEST, read_manifest
from pixpod_bench.cold.case import Case
from pixpod_bench.cold.processes import environment


def bake_caches(directory: Path, sizes_gb: Sequence[int], device: str) -> list[Case]:
    """Caches of FLUX with random weights by `scripts/bake`, made unless they are there.

    Size 0 is the tiny model: a rehearsal.
    """
    tiny = directory / "tiny"
    for model in ("flux-tiny", "sdxl-tiny"):
        bake(tiny, model)
    cases = []
    for size_gb in sizes_gb:
        folder = directory / f"flux-dev-{size_gb}gb" if size_gb else tiny
        if size_gb:
            bake(folder, "flux-dev", "--size-gb", str(size_gb))
        cases.append(
            Case(
                title=f"FLUX, {size_gb} GB" if size_gb else "flux-tiny",
                directory=folder,
                model="flux-dev" if size_gb else "flux-tiny",
                device=device,
                tiny=tiny,
            )
        )
    return cases


def bake(folder: Path, model: str, *arguments: str) -> None:
    """Random weights of one model, unless the folder has it. Raises CalledProcessError."""
    if (folder / MANIFEST).exists() and model in read_manifest(folder):
        return
    command = [sys.executable, "-m", "pixpod.baking.cli", "--random", model]
    subprocess.run(  # noqa: S603 (our own arguments, no shell)
        [*command, *arguments, "--to", str(folder)],
        env=environment({"TORCHAO_FORCE_SKIP_LOADING_SO_FILES": "1"}),
        stdout=subprocess.DEVNULL,
        check=True,
    )
