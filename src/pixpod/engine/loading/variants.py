"""Keeps one `LoadedModel` for each model and precision on a device.

Chooses the precision, makes room, loads and compiles.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import torch

from pixpod.catalog import Catalog, ModelSpec
from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.component_key import ComponentKey, extra_key
from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.model_runner import ModelRunner
from pixpod.engine.execution.runnable_model import RunnableModel
from pixpod.engine.loading.components import LoadJob, target_precision, wide_precision
from pixpod.engine.loading.extras import ExtraLoadJob, load_extra
from pixpod.engine.loading.model_loading import load_model
from pixpod.engine.memory.budget import budget_for
from pixpod.engine.memory.host import free_bytes
from pixpod.engine.memory.needs import NoFootprint, extra_bytes, files_bytes, need_of
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import ResidencyPlan, make_plan
from pixpod.engine.memory.sharing import Sharing
from pixpod.engine.model import Compilation, Component, LoadedExtra, LoadedModel
from pixpod.engine.precision.attention import set_attention
from pixpod.engine.precision.precision import (
    Hardware,
    QuantizationPlan,
    choose_precision,
)
from pixpod.errors import WorkerError
from pixpod.extras import Extras, ExtraSpec, ServedSpec
from pixpod.families import Precision
from pixpod.job import Quality
from pixpod.stacks import Stack
from pixpod.timeline import BootTimeline
from pixpod.weights.layout import CheckpointInfo, Weights, read_checkpoint_info
from pixpod.weights.prefetch import Prefetch

log = logging.getLogger(__name__)

RequestedPrecision = Callable[[str], Precision | None]
"""The deployment's setting for a model; None for what suits the weights and the GPU."""

FindWeights = Callable[[ServedSpec], Weights | None]
"""Returns weights that are on a local disk now. Raises a WorkerError."""


@dataclass(kw_only=True, eq=False)
class Variants:
    """Loads variants of models; several threads may, but only one at a time of the same model.

    Components that models or variants have in common are loaded by the first. `compiled`
    holds packages that were compiled ahead; with None nothing is compiled. The runner of all
    models keeps embeddings of prompts in `prompt_cache_bytes`.
    """

    device: torch.device
    hardware: Hardware
    plan: ResidencyPlan
    sharing: Sharing
    compiled: CompiledStore | None
    requested_precision: RequestedPrecision
    prefetch: Prefetch
    timeline: BootTimeline
    prompt_cache_bytes: int

    def __post_init__(self) -> None:
        self.placement = Placement(self.plan)
        self._runner = ModelRunner(
            self.placement,
            ConditionCache(self.prompt_cache_bytes),
            compile_copy=self._compile_copy if self.compiled is not None else None,
        )
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, str], RunnableModel] = {}
        self._components: dict[ComponentKey, Component] = {}
        self._locks: defaultdict[object, threading.Lock] = defaultdict(threading.Lock)
        self._compiling = threading.Lock()  # models may have a decoder in common

    def load(self, spec: ModelSpec, weights: Weights, quality: Quality) -> RunnableModel:
        """Return the variant for this quality, loaded if need be. Raises a WorkerError."""
        with self._lock_of(spec.name):
            plan = choose_precision(
                spec,
                read_checkpoint_info(spec, weights),
                self.hardware,
                quality=quality,
                requested=self.requested_precision(spec.name),
                is_compiling=self.compiled is not None,
            )
            key = (spec.name, plan.label)
            if key not in self._loaded:
                loaded = self._compile(self._load(spec, weights, plan))
                self._loaded[key] = RunnableModel(loaded, self._runner, self.timeline)
            return self._loaded[key]

    def load_extra(self, model: RunnableModel, extra: ExtraSpec, weights: Weights) -> None:
        """Load an extra for a model, unless it has it. Raises a WorkerError."""
        loaded = model.loaded
        precision = extra.precision_beside(wide_precision(loaded))
        key = extra_key(extra.name, precision)
        with self._lock_of(key):
            if key not in self._components:
                job = ExtraLoadJob(
                    extra=extra,
                    weights=weights,
                    precision=precision,
                    device=self.device,
                    prefetch=self.prefetch,
                    timeline=self.timeline,
                )
                size_bytes = extra_bytes(extra, precision, weights)
                module = self.placement.admit(
                    key, size_bytes, self.device, partial(load_extra, job)
                )
                if extra.sets_attention_backend:
                    set_attention(module, self.hardware.attention, self.device)
                self._components[key] = module
            loaded.extras[extra.name] = LoadedExtra(module=self._components[key], key=key)

    def clear(self) -> None:
        """Drop all models."""
        self._loaded.clear()
        self._components.clear()
        self.placement.clear()

    def _load(self, spec: ModelSpec, weights: Weights, plan: QuantizationPlan) -> LoadedModel:
        keys = self.sharing.keys_of(spec, plan, weights)
        sizes = need_of(spec, plan, weights, keys).sizes

        def admit(name: str, load: Callable[[], Component]) -> Component:
            key = keys[name]
            size_bytes = sizes[key]
            if _is_converted_on_device(spec, weights, plan, name):
                size_bytes += files_bytes(weights, name)  # both exist for a moment
            with self._lock_of(key):
                if key not in self._components:
                    component = self.placement.admit(key, size_bytes, self.device, load)
                    self._components[key] = component
                return self._components[key]

        _log_conversion(spec, weights, plan)
        job = LoadJob(
            spec=spec,
            weights=weights,
            plan=plan,
            device=self.device,
            prefetch=self.prefetch,
            timeline=self.timeline,
        )
        present = {
            name: self._components[key] for name, key in keys.items() if key in self._components
        }
        return load_model(
            job, attention=self.hardware.attention, keys=keys, present=present, admit=admit
        )

    def _lock_of(self, key: object) -> threading.Lock:
        """Return the lock that is held while a model or a component is being loaded."""
        with self._lock:
            return self._locks[key]

    def _compile_copy(self, model: LoadedModel) -> Compilation:
        """Compile a copy of a denoiser. Nobody else has it, so that no load must be waited for."""
        assert self.compiled is not None
        return compile_model(model, self.compiled, only=(model.spec.family.denoiser,))

    def _compile(self, model: LoadedModel) -> LoadedModel:
        if self.compiled is None:
            return model
        components = dict.fromkeys(region.component for region in model.spec.family.regions)
        with (
            self._compiling,
            self.timeline.span("compile", model.spec.name),
            self.placement.pinning(model, components),
        ):
            return replace(model, compilation=compile_model(model, self.compiled))


def plan_models(
    models: Catalog,
    find: FindWeights,
    hardware: Hardware,
    sharing: Sharing,
    *,
    requested_precision: RequestedPrecision,
    is_compiling: bool,
    memory_limit_gib: float | None,
    extras: Extras = MappingProxyType({}),
    stacks: Sequence[Stack] = (),
) -> ResidencyPlan:
    """Plan where the default variants of these models and the extras of these stacks will live.

    A model that cannot be loaded is left out; its own load says why. Raises ModelUnavailable if
    the models, a stack, or an extra beside its model do not fit.
    """
    needs = []
    for name, spec in models.items():
        try:
            weights = find(spec)
            plan = choose_precision(
                spec,
                read_checkpoint_info(spec, weights) if weights else CheckpointInfo(),
                hardware,
                requested=requested_precision(name),
                is_compiling=is_compiling,
            )
            keys = sharing.keys_of(spec, plan, weights)
            needs.append(
                need_of(spec, plan, weights, keys, extras=extras, stacks=stacks, find_extra=find)
            )
        except (WorkerError, NoFootprint) as exc:
            log.warning("not in the plan", extra={"model": name, "reason": str(exc)})
    residency = make_plan(needs, budget_for(hardware.memory_bytes, memory_limit_gib))
    log.info("residency", extra=residency.summary())
    _check_host_memory(residency)
    return residency


def _check_host_memory(plan: ResidencyPlan) -> None:
    """Warn of a host that is too small: its kernel kills a container without a message."""
    offloaded_bytes, left_bytes = sum(plan.offloaded.values()), free_bytes()
    if left_bytes is not None and offloaded_bytes > left_bytes:
        log.warning(
            "host memory may not hold offloaded components: serve fewer models or use a larger GPU",
            extra={"offloaded_bytes": offloaded_bytes, "left_bytes": left_bytes},
        )


def _log_conversion(spec: ModelSpec, weights: Weights, plan: QuantizationPlan) -> None:
    """Log what each boot pays for weights that are not baked in the format that they run in."""
    is_baked = weights.precision is not None and weights.precision.is_8_bit
    if plan.precision.is_8_bit and not is_baked:
        log.info(
            "16-bit weights are quantized at each boot: bake them to save it",
            extra={
                "model": spec.name,
                "precision": plan.label,
                "read_bytes": files_bytes(weights, spec.family.denoiser),
            },
        )


def _is_converted_on_device(
    spec: ModelSpec, weights: Weights, plan: QuantizationPlan, name: str
) -> bool:
    """Return whether a component comes to the device in another form than it stays there."""
    target = target_precision(spec, name, plan)
    is_denoiser = name == spec.family.denoiser
    if is_denoiser and (plan.is_streamed or target is weights.precision):
        return False
    return target is not None
