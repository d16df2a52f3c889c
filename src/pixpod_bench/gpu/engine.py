"""The engine as a worker has it, on a weights directory: loaded, compiled and warm before anything
is measured.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pixpod.bootstrap import build_engine
from pixpod.catalog import Precision, load_catalog
from pixpod.engine.engine import DiffusionEngine
from pixpod.settings import Settings

ALL_LICENCES = ",".join(
    spec.licence for spec in load_catalog().values() if spec.licence_must_be_accepted
)
"""Of published weights; those of a benchmark are random."""

_LONGEST_BOOT_S = 480.0
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where an engine finds what it needs; `compiled_dir` need not be there."""

    weights_dir: Path
    compiled_dir: Path
    device: torch.device


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """What an engine serves and how. Sizes are compiled and drawn once before it is warm."""

    home: Home
    precisions: Sequence[tuple[str, Precision]]
    sizes_px: Sequence[int]
    is_batching: bool = True
    limit_gib: float | None = None

    def environ(self) -> Mapping[str, str]:
        """As a deployment's variables."""
        listed = ",".join(f"{model}={precision}" for model, precision in self.precisions)
        sizes = ",".join(f"{size}x{size}" for size in self.sizes_px)
        environ = {
            "PIXPOD_WEIGHTS_DIR": str(self.home.weights_dir),
            "PIXPOD_COMPILED_DIR": str(self.home.compiled_dir),
            "PIXPOD_MODELS": ",".join(model for model, _ in self.precisions),
            "PIXPOD_PRECISION": listed,
            "PIXPOD_DEVICE": self.home.device.type,
            "PIXPOD_PRELOAD": "true",
            "PIXPOD_VERIFY": "sizes",
            "PIXPOD_WARMUP_SIZES": sizes,
            "PIXPOD_BATCHING": str(self.is_batching).lower(),
            "PIXPOD_ACCEPTALL_LICENCES": ALL_LICENCES,
        }
        if self.limit_gib is not None:
            environ["PIXPOD_MEMORY_LIMIT_GB"] = f"{self.limit_gib:g}"
        return environ


@contextmanager
def warm_engine(environ: Mapping[str, str]) -> Iterator[DiffusionEngine]:
    """Of a deployment with these variables; stopped at the end. What cannot be loaded, the first
    request tells. Raises InvalidSettings, and TimeoutError if it is not warm in 8 minutes.
    """
    engine = build_engine(Settings.from_env(environ))
    engine.start()
    try:
        deadline = time.perf_counter() + _LONGEST_BOOT_S
        while not engine.is_warm:
            if time.perf_counter() > deadline:
                raise TimeoutError(f"the engine was not warm within {_LONGEST_BOOT_S:.0f} s")
            time.sleep(_LOOK_EVERY_S)
        yield engine
    finally:
        engine.stop()
