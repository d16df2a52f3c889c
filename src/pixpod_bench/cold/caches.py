"""Weights directories of random numbers, made once by `scripts/bake` and used again."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pixpod.catalog import Family, load_catalog
from pixpod.weights.manifest import MANIFEST, read_manifest
from pixpod_bench.cold.case import TINY, Case
from pixpod_bench.cold.processes import environment


def bake_flux_caches(directory: Path, sizes_gb: Sequence[int], device: str) -> list[Case]:
    """FLUX with random weights and so many blocks that it has about these sizes.

    Size 0 is the tiny model: a rehearsal.
    """
    tiny = _bake_tiny(directory, Family.FLUX)
    cases = []
    for size_gb in sizes_gb:
        model = "flux-dev" if size_gb else "flux-tiny"
        folder = directory / f"flux-dev-{size_gb}gb" if size_gb else tiny
        if size_gb:
            bake(folder, model, "--size-gb", str(size_gb))
        title = f"FLUX, {size_gb} GB" if size_gb else model
        cases.append(Case(title=title, directory=folder, model=model, device=device, tiny=tiny))
    return cases


def bake_full(directory: Path, model: str, device: str) -> Case:
    """A model of full size, or one of the tiny ones."""
    tiny = _bake_tiny(directory, load_catalog()[model].family)
    folder = tiny if model in TINY.values() else directory / model
    bake(folder, model)
    return Case(title=model, directory=folder, model=model, device=device, tiny=tiny)


def _bake_tiny(directory: Path, family: Family) -> Path:
    """A small model of the family, to rehearse with."""
    bake(directory / "tiny", TINY[family])
    return directory / "tiny"


def bake(folder: Path, model: str, *arguments: str) -> None:
    """Random weights of one model, unless the folder has it. Raises CalledProcessError."""
    if (folder / MANIFEST).exists() and model in read_manifest(folder):
        return
    command = [sys.executable, "-m", "pixpod_tools.bake.cli", "--random", model]
    subprocess.run(  # noqa: S603 (our own arguments, no shell)
        [*command, *arguments, "--to", str(folder)],
        env=environment({"TORCHAO_FORCE_SKIP_LOADING_SO_FILES": "1"}),
        stdout=subprocess.DEVNULL,
        check=True,
    )
