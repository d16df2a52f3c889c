"""Models on one device, each once for each precision: chosen, given room, loaded, compiled."""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from pixpod.catalog import Catalog, ModelSpec, Precision
from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.loading.components import Component, made_into
from pixpod.engine.loading.pipelines import LoadedModel, load_model
from pixpod.engine.memory.footprints import Footprints, Held, NoFootprint, files_bytes
from pixpod.engine.memory.host import free_bytes
from pixpod.engine.memory.needs import Part, need_of
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import Plan, budget_for, make_plan
from pixpod.engine.memory.sharing import Sharing
from pixpod.engine.precision.precision import Choice, Place, Stored, choose_precision
from pixpod.errors import WorkerError
from pixpod.job import Quality
from pixpod.timeline import BootTimeline
from pixpod.weights.layout import Weights, read_stored
from pixpod.weights.prefetch import Prefetch

log = logging.getLogger(__name__)

AskedPrecision = Callable[[str], Precision | None]
"""What the deployment says of a model; None for what suits the weights and the card."""

FindWeights = Callable[[ModelSpec], Weights | None]
"""Those on a local disk now. Raises a WorkerError."""


@dataclass(slots=True, eq=False)
class _Model:
    """What is loaded of one model, by what it runs in. Held while one more is being loaded."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    loaded: dict[str, LoadedModel] = field(default_factory=dict)

    @property
    def has_lost_compiler(self) -> bool:
        return any(variant.has_lost_compiler for variant in self.loaded.values())


class Variants:
    """Several threads may load at a time, but only one of them a variant of the same model.
    Components that models or variants have in common are loaded by the first.

    `compiled_dir` holds what was compiled for some cards; with None nothing is compiled.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        place: Place,
        plan: Plan,
        sharing: Sharing,
        compiled_dir: Path | None,
        asked_precision: AskedPrecision,
        prefetch: Prefetch,
        timeline: BootTimeline,
    ) -> None:
        self._footprints = Footprints()
        self.placement = Placement(plan, self._footprints.working_bytes)
        self._device = device
        self._place = place
        self._store = None if compiled_dir is None else CompiledStore(compiled_dir)
        self._asked_precision = asked_precision
        self._prefetch = prefetch
        self._timeline = timeline
        self._lock = threading.Lock()
        self._models: dict[str, _Model] = {}
        self._sharing = sharing
        self._components: dict[Part, Component] = {}
        self._loading: defaultdict[Part, threading.Lock] = defaultdict(threading.Lock)
        self._compiling = threading.Lock()  # models may have a decoder in common

    def load(self, spec: ModelSpec, weights: Weights, quality: Quality) -> LoadedModel:
        """The variant that draws in this quality. Once one of this model's could not be compiled,
        what is chosen is what runs best without. Raises a WorkerError.
        """
        with self._lock:
            model = self._models.setdefault(spec.name, _Model())
        with model.lock:
            choice = choose_precision(
                spec,
                read_stored(spec, weights),
                self._place,
                quality=quality,
                asked=self._asked_precision(spec.name),
                is_compiling=self._store is not None and not model.has_lost_compiler,
            )
            if choice.label not in model.loaded:
                loaded = self._load(spec, weights, choice)
                model.loaded[choice.label] = self._compile(loaded)
            return model.loaded[choice.label]

    def clear(self) -> None:
        """Drop all models."""
        self._models.clear()
        self._components.clear()
        self.placement.clear()

    def _load(self, spec: ModelSpec, weights: Weights, choice: Choice) -> LoadedModel:
        held = _held(choice)
        parts = self._sharing.parts_of(spec, held, weights)
        sizes = need_of(spec, held, self._footprints, weights, parts).parts

        def admit(name: str, load: Callable[[], Component]) -> Component:
            part = parts[name]
            size_bytes = sizes[part]
            if _is_converted_there(spec, weights, choice, name):
                size_bytes += files_bytes(weights, name)  # both are there for a moment
            with self._loading_of(part):
                if part not in self._components:
                    component = self.placement.admit(part, size_bytes, self._device, load)
                    self._components[part] = component
                return self._components[part]

        _log_conversion(spec, weights, choice)
        present = {
            name: self._components[part] for name, part in parts.items() if part in self._components
        }
        return load_model(
            spec,
            weights,
            choice,
            self._device,
            self._prefetch,
            self._timeline,
            attention=self._place.attention,
            parts=parts,
            present=present,
            admit=admit,
        )

    def _loading_of(self, part: Part) -> threading.Lock:
        with self._lock:
            return self._loading[part]

    def _compile(self, model: LoadedModel) -> LoadedModel:
        if self._store is None:
            return model
        components = (model.spec.family.denoiser, "vae")  # what recipes name: T5 may have no room
        with (
            self._compiling,
            self._timeline.span("compile", model.spec.name),
            self.placement.keeping(model, components),
        ):
            return replace(model, compilation=compile_model(model, self._store))


def plan_models(
    models: Catalog,
    find: FindWeights,
    place: Place,
    sharing: Sharing,
    *,
    asked_precision: AskedPrecision,
    is_compiling: bool,
    memory_limit_gib: float | None,
) -> Plan:
    """Where the default variants of these models will live. Raises ModelUnavailable if they
    cannot; a model that cannot be loaded is left out, its own load says why.
    """
    footprints, needs = Footprints(), []
    for name, spec in models.items():
        try:
            weights = find(spec)
            choice = choose_precision(
                spec,
                read_stored(spec, weights) if weights else Stored(),
                place,
                asked=asked_precision(name),
                is_compiling=is_compiling,
            )
            held = _held(choice)
            parts = sharing.parts_of(spec, held, weights)
            needs.append(need_of(spec, held, footprints, weights, parts))
        except (WorkerError, NoFootprint) as exc:
            log.warning("not in the plan", extra={"model": name, "reason": str(exc)})
    plan = make_plan(needs, budget_for(footprints, place.memory_bytes, memory_limit_gib))
    log.info("residency", extra=plan.summary())
    _check_host_memory(plan)
    return plan


def _check_host_memory(plan: Plan) -> None:
    """A container that takes more than it may have is killed without a word; here is one."""
    parked_bytes, left_bytes = sum(plan.parked.values()), free_bytes()
    if left_bytes is not None and parked_bytes > left_bytes:
        log.warning(
            "host memory may not hold what is parked: serve fewer models, or from a larger card",
            extra={"parked_bytes": parked_bytes, "left_bytes": left_bytes},
        )


def _log_conversion(spec: ModelSpec, weights: Weights, choice: Choice) -> None:
    """What each boot pays for weights that are not baked in the precision in which they run."""
    is_baked = weights.precision is not None and weights.precision.is_8_bit
    if choice.precision.is_8_bit and not is_baked:
        log.info(
            "16-bit weights are quantised at each boot: bake them to save it",
            extra={
                "model": spec.name,
                "precision": choice.label,
                "read_bytes": files_bytes(weights, spec.family.denoiser),
            },
        )


def _is_converted_there(spec: ModelSpec, weights: Weights, choice: Choice, name: str) -> bool:
    """Whether a component comes to the device in another form than it stays there."""
    made = made_into(spec, name, choice)
    is_denoiser = name == spec.family.denoiser
    if is_denoiser and (choice.is_streamed or made is weights.precision):
        return False
    return made is not None


def _held(choice: Choice) -> Held:
    return Held(precision=choice.precision, t5=choice.t5)
