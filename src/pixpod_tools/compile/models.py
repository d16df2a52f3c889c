"""Models of a weights directory, loaded as a worker loads them, but not compiled."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pixpod.catalog import Catalog, ModelSpec
from pixpod.engine.device import find_hardware
from pixpod.engine.loading.components import LoadJob
from pixpod.engine.loading.model_loading import (
    import_pipelines,
    load_model,
    silence_libraries,
)
from pixpod.engine.model import LoadedModel
from pixpod.engine.precision.precision import choose_precision
from pixpod.errors import InvalidSettings
from pixpod.timeline import BootTimeline, since_process_start
from pixpod.weights.layout import files_to_read, read_checkpoint_info
from pixpod.weights.manifest import read_manifest
from pixpod.weights.prefetch import Prefetch, Verify
from pixpod.weights.sources import BakedSource

READING_THREADS = 4


def choose_models(
    catalog: Catalog, weights_dir: Path, names: Sequence[str], device: torch.device
) -> tuple[ModelSpec, ...]:
    """Return the named models, or all of the directory that can run on the device.

    Raises InvalidSettings for a name that the directory does not have.
    """
    there = [name for name in read_manifest(weights_dir) if name in catalog]
    for name in names:
        if name not in there:
            accepted = ", ".join(there)
            raise InvalidSettings(f"--model {name!r}: {weights_dir} has {accepted}")
    specs = tuple(catalog[name] for name in names or there)
    return tuple(spec for spec in specs if names or device.type == "cuda" or not spec.requires_cuda)


def load(spec: ModelSpec, weights_dir: Path, device: torch.device) -> LoadedModel:
    """Load a model in the precision in which a worker serves it compiled. Raises a WorkerError."""
    weights = BakedSource(weights_dir).fetch(spec)
    if weights is None:
        raise InvalidSettings(f"{weights_dir} has no {spec.name}")
    silence_libraries()
    import_pipelines([spec.family])
    hardware = find_hardware(device)
    checkpoint = read_checkpoint_info(spec, weights)
    plan = choose_precision(spec, checkpoint, hardware, is_compiling=True)
    prefetch = Prefetch(threads=READING_THREADS, verify=Verify.CHUNKS)
    try:
        prefetch.add(spec.name, files_to_read(spec, weights))
        job = LoadJob(
            spec=spec,
            weights=weights,
            plan=plan,
            device=device,
            prefetch=prefetch,
            timeline=BootTimeline(since_process_start()),
        )
        return load_model(job, attention=hardware.attention)
    finally:
        prefetch.stop()
