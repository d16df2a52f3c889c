"""One model loaded by the worker's own loading, without a worker around it."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from pixpod.catalog import load_catalog
from pixpod.engine.loading.components import LoadJob
from pixpod.engine.loading.model_loading import load_model
from pixpod.engine.model import LoadedModel
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.families import Precision
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.timeline import BootTimeline, since_process_start
from pixpod.weights.layout import Weights, files_to_read
from pixpod.weights.prefetch import Prefetch, Verify


def shipped(name: str) -> Weights:
    """A tiny model as it ships with the source."""
    folder = SOURCE_WEIGHTS_DIR / "tiny" / name
    return Weights(folder=folder, revision="1", source="baked")


def load(
    name: str,
    weights: Weights,
    plan: Precision | QuantizationPlan,
    device: torch.device,
    present: Mapping[str, nn.Module] = MappingProxyType({}),
) -> LoadedModel:
    """Raises what loading raises."""
    if isinstance(plan, Precision):
        plan = QuantizationPlan(precision=plan)
    spec = load_catalog()[name]
    prefetch = Prefetch(threads=2, verify=Verify.CHUNKS)
    try:
        prefetch.add(name, files_to_read(spec, weights))
        job = LoadJob(
            spec=spec,
            weights=weights,
            plan=plan,
            device=device,
            prefetch=prefetch,
            timeline=BootTimeline(since_process_start()),
        )
        return load_model(job, present=present)
    finally:
        prefetch.stop()
