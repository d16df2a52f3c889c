"""Memory needs of models on another machine's GPU, as a worker there plans them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from pixpod.catalog import Catalog, ModelSpec
from pixpod.engine.component_key import ComponentKey
from pixpod.engine.device_probe import version_of_torch
from pixpod.engine.memory.budget import Budget, budget_for
from pixpod.engine.memory.needs import Need, known_bytes, need_of
from pixpod.engine.memory.sharing import Sharing
from pixpod.engine.precision.precision import Hardware, QuantizationPlan, choose_precision
from pixpod.errors import InvalidSettings, ModelUnavailable
from pixpod.extras import Extras, ExtraSpec
from pixpod.families import GIB, Precision
from pixpod.gpus import Gpu, GpuClass, find_gpu, find_gpu_class, load_gpus
from pixpod.stacks import Stack
from pixpod.weights.layout import CheckpointInfo, Weights, read_checkpoint_info
from pixpod.weights.sources import BakedSource

FULL_GPU = (8, 9)
"""Compute capability if only a memory is given: the oldest class with all features in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A GPU that is planned for, or a part of one."""

    title: str
    hardware: Hardware
    budget: Budget


def target_of(gpu: Gpu, limit_gib: float | None = None) -> Target:
    """Return a GPU as a target; `limit_gib` is the part that may be used, None for all of it."""
    memory_bytes = round(gpu.memory_gib * GIB)
    return _target(gpu.name, find_gpu_class(gpu.capability), memory_bytes, limit_gib)


def find_target(gpu_name: str | None, memory_gib: float | None) -> Target:
    """Return a GPU by name, a memory, or a GPU of which only so much may be used.

    Raises InvalidSettings for a name that is not known.
    """
    if gpu_name is None:
        return _target("a GPU", find_gpu_class(FULL_GPU), None, memory_gib)
    gpu = find_gpu(gpu_name)
    if gpu is None:
        known = ", ".join(gpu.name for gpu in load_gpus())
        raise InvalidSettings(f"--gpu: expected one of {known}, got {gpu_name!r}")
    return target_of(gpu, memory_gib)


def _target(
    title: str, gpu_class: GpuClass, memory_bytes: int | None, limit_gib: float | None
) -> Target:
    budget = budget_for(memory_bytes, limit_gib)
    assert budget is not None, "one of both is given"
    torch_version = version_of_torch()
    hardware = Hardware(
        gpu=gpu_class,
        memory_bytes=budget.gpu_bytes if limit_gib is not None else memory_bytes,
        has_float8=torch_version is None or gpu_class.has_float8(torch_version),
    )
    return Target(title=title, hardware=hardware, budget=budget)


def served_models(entries: Iterable[str], catalog: Catalog) -> Catalog:
    """Return the models of entries, see `find_needs`. Raises InvalidSettings."""
    found = {}
    for entry in entries:
        name = entry.partition("=")[0]
        if name not in catalog:
            raise InvalidSettings(f"--models: expected any of {', '.join(catalog)}, got {entry!r}")
        found[name] = catalog[name]
    return found


def find_needs(
    entries: Sequence[str],
    catalog: Catalog,
    weights_dir: Path | None,
    target: Target,
    *,
    extras: Extras = MappingProxyType({}),
    stacks: Sequence[Stack] = (),
) -> tuple[Need, ...]:
    """Return the needs of models on a target, with the extras and stacks of a deployment.

    `entries` are names, each with `=` and a precision if the choice is not the worker's. Raises
    InvalidSettings, and what a worker on that GPU would answer.
    """
    models = served_models(entries, catalog)
    needs, sharing = [], Sharing()
    for entry in entries:
        name, _, precision = entry.partition("=")
        if precision and precision not in list(Precision):
            known = ", ".join(Precision)
            raise InvalidSettings(f"--models {entry}: expected a precision of {known}")
        requested = Precision(precision) if precision else None
        spec = models[name]
        weights = _find_weights(spec, weights_dir)
        checkpoint = (
            read_checkpoint_info(spec, weights)
            if weights
            else checkpoint_of(spec, QuantizationPlan(precision=requested or Precision.BFLOAT16))
        )
        plan = _choose(spec, checkpoint, target.hardware, requested)
        keys: Mapping[str, ComponentKey] = sharing.keys_of(spec, plan, weights)
        needs.append(
            need_of(
                spec,
                plan,
                weights,
                keys,
                extras=extras,
                stacks=stacks,
                find_extra=partial(_find_extra, weights_dir),
            )
        )
    return tuple(needs)


def checkpoint_of(spec: ModelSpec, baked: QuantizationPlan) -> CheckpointInfo:
    """Return the format of the files that `scripts/bake` writes for a plan. Raises NoFootprint."""
    is_float8 = baked.precision is Precision.FLOAT8_DYNAMIC
    stored = replace(baked, precision=baked.precision if is_float8 else Precision.BFLOAT16)
    return CheckpointInfo(
        denoiser=Precision.FLOAT8_DYNAMIC if is_float8 else None,
        denoiser_bytes=known_bytes(spec, stored)[spec.family.denoiser],
        is_t5_float8=is_float8 and baked.t5 is Precision.FLOAT8_DYNAMIC,
    )


def _choose(
    spec: ModelSpec, checkpoint: CheckpointInfo, hardware: Hardware, requested: Precision | None
) -> QuantizationPlan:
    """Choose as a worker would; the plan says whether a requested precision fits."""
    suited = choose_precision(spec, checkpoint, hardware, is_compiling=True)
    if requested is None:
        return suited
    anywhere = replace(hardware, memory_bytes=None)
    plan = choose_precision(spec, checkpoint, anywhere, requested=requested, is_compiling=True)
    return replace(plan, t5=suited.t5)


def _find_extra(weights_dir: Path | None, extra: ExtraSpec) -> Weights | None:
    return BakedSource(weights_dir).find(extra) if weights_dir else None


def _find_weights(spec: ModelSpec, weights_dir: Path | None) -> Weights | None:
    if weights_dir is None:
        return None
    weights = BakedSource(weights_dir).find(spec)
    if weights is None:
        raise ModelUnavailable(f"{spec.name} is not in {weights_dir}")
    return weights
