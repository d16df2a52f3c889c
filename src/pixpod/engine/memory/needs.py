"""GPU memory that a model needs, alone and in stacks: of components and, by stage, of activations.

Sizes are computed from files where there are any, else from the family's table. Numbers only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from pixpod.catalog import ModelSpec
from pixpod.engine.component_key import ComponentKey, extra_key, own_keys
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.errors import WeightsUnreadable
from pixpod.extras import Extras, ExtraSpec, extras_for
from pixpod.families import GIB, ComponentSpec, Precision, Role
from pixpod.methods import StagePlan, method_of, stack_extras, stages_of
from pixpod.stacks import Stack, can_be_named, stack_request
from pixpod.weights.layout import (
    Weights,
    component_folder,
    extra_tensor_paths,
    tensor_paths,
)

_SHIPPED_BYTES = round(0.02 * GIB)
"""Size of each component of this repository's small models, whatever their family."""


FindExtra = Callable[[ExtraSpec], Weights | None]
"""Returns the weights of an extra that are on a disk now. Raises a WorkerError."""


class NoFootprint(Exception):
    """A precision without a known size; the text lists those that have one."""


def known_bytes(spec: ModelSpec, plan: QuantizationPlan) -> Mapping[str, int]:
    """Return the bytes of each component by the family's table. Raises NoFootprint."""
    if spec.repository is None:
        return dict.fromkeys(spec.family.component_names, _SHIPPED_BYTES)
    return {each.name: _table_bytes(each, plan) for each in spec.family.components}


def measured_bytes(spec: ModelSpec, plan: QuantizationPlan, weights: Weights) -> Mapping[str, int]:
    """Return the bytes of each component, from its files and the format it is loaded in.

    Raises WeightsUnreadable.
    """
    stored = weights.precision or Precision.BFLOAT16
    found = {}
    for component in spec.family.components:
        if plan.t5 and component.name == spec.family.large_text_encoder and spec.repository:
            found[component.name] = _table_bytes(component, plan)
            continue
        size_bytes = files_bytes(weights, component.name) * _bits(component, plan.precision)
        found[component.name] = size_bytes // _bits(component, stored)
    return found


def files_bytes(weights: Weights, component: str) -> int:
    """Return the size of a component's files. Raises WeightsUnreadable."""
    return _bytes_on_disk(tensor_paths(component_folder(weights, component)))


def _bytes_on_disk(paths: Sequence[Path]) -> int:
    try:
        return sum(path.stat().st_size for path in paths)
    except OSError as exc:
        raise WeightsUnreadable(f"{exc.filename}: {exc.strerror}") from exc


def extra_bytes(extra: ExtraSpec, precision: Precision, weights: Weights | None) -> int:
    """Return the bytes of an extra in a format, from its files if there are any.

    Raises WeightsUnreadable.
    """
    if weights is None:
        stored, size_bytes = Precision.BFLOAT16, round(extra.gib_16 * GIB)
    else:
        stored = weights.precision or Precision.BFLOAT16
        size_bytes = _bytes_on_disk(extra_tensor_paths(extra, weights))
    bits = {Precision.FLOAT32: 32}
    return size_bytes * bits.get(precision, 16) // bits.get(stored, 16)


def _table_bytes(component: ComponentSpec, plan: QuantizationPlan) -> int:
    is_denoiser = component.role is Role.DENOISER
    is_8_bit = plan.precision.is_8_bit if is_denoiser else bool(plan.t5 and plan.t5.is_8_bit)
    if not is_8_bit or (component.gib_8 is None and not is_denoiser):
        return round(component.gib_16 * GIB) * _bits(component, plan.precision) // 16
    is_adaln_8_bit = plan.adaln.is_8_bit or not is_denoiser
    gib = component.gib_8 if is_adaln_8_bit else component.gib_8_adaln16
    if gib is None:
        raise NoFootprint(", ".join(each for each in Precision if not each.is_8_bit))
    return round(gib * GIB)


def _bits(component: ComponentSpec, precision: Precision) -> int:
    """Width of most values; only a denoiser has 8 bits."""
    if precision is Precision.FLOAT32:
        return 32
    return 8 if precision.is_8_bit and component.role is Role.DENOISER else 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StackNeed:
    """The stages of one image that uses a stack, or a single extra that no stack has.

    `parts` are the names of what it uses beside the model. `is_declared`: the deployment wants it
    to be ready. `smaller` has the stages that are left without some parts: first without each of
    them, the largest first, then without ever more.
    """

    name: str
    parts: tuple[str, ...]
    stages: tuple[StagePlan, ...]
    is_declared: bool
    smaller: tuple[tuple[tuple[str, ...], tuple[StagePlan, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Components of a model and extras by their names, with their bytes, and its stages.

    The stages are those of one image of the default size. `saved_bytes` is what the denoiser
    would save in 8 bits, 0 if it is in 8 bits or cannot be.
    """

    model: str
    precision: Precision
    denoiser: str
    keys: Mapping[str, ComponentKey]
    sizes: Mapping[ComponentKey, int]
    stages: tuple[StagePlan, ...]
    saved_bytes: int
    stacks: tuple[StackNeed, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.model} in {self.precision}"

    @property
    def declared_stacks(self) -> tuple[StackNeed, ...]:
        return tuple(stack for stack in self.stacks if stack.is_declared)

    @property
    def planned_stages(self) -> tuple[StagePlan, ...]:
        """The stages of the model alone and of its declared stacks."""
        return (*self.stages, *(each for stack in self.declared_stacks for each in stack.stages))

    @property
    def planned_sizes(self) -> Mapping[ComponentKey, int]:
        """Bytes of what has a place in a plan: the model's components, and declared extras."""
        used = {key for stage in self.planned_stages for key in self.components_of(stage)}
        return {key: size for key, size in self.sizes.items() if key in used}

    def components_of(self, stage: StagePlan) -> Mapping[ComponentKey, int]:
        """Return the bytes of each component and extra of a stage."""
        keys = [self.keys[name] for name in stage.components if name in self.keys]
        return {key: self.sizes[key] for key in keys}

    def stage_bytes(self, stage: StagePlan, batch_size: int = 1) -> int:
        """Return the bytes that a stage needs in all."""
        return sum(self.components_of(stage).values()) + stage.working_bytes(batch_size)


def need_of(
    spec: ModelSpec,
    plan: QuantizationPlan,
    weights: Weights | None = None,
    keys: Mapping[str, ComponentKey] | None = None,
    *,
    extras: Extras = MappingProxyType({}),
    stacks: Sequence[Stack] = (),
    find_extra: FindExtra = lambda extra: None,
) -> Need:
    """Return a model's need, from its files if there are any, else from the family's table.

    `keys` by component are the model's own unless it shares some with another model. Of `extras`
    and `stacks`, those of other models are left out.

    Raises NoFootprint for a precision that the table does not have, and a WorkerError.
    """
    sizes = _sizes(spec, plan, weights)
    keys = keys or own_keys(spec, plan.precision)
    denoiser = spec.family.denoiser
    saved_bytes = 0
    if spec.quantization and not plan.precision.is_8_bit:
        smaller = _sizes(spec, replace(plan, precision=Precision.FLOAT8_DYNAMIC), weights)
        saved_bytes = sizes[denoiser] - smaller[denoiser]
    wide = plan.wide_precision
    fitting = {extra.name: extra for extra in extras_for(spec, extras)}
    own_sizes = {keys[name]: size for name, size in sizes.items()}
    formats = {name: extra.precision_beside(wide) for name, extra in fitting.items()}
    extra_sizes = {
        name: extra_bytes(extra, formats[name], find_extra(extra))
        for name, extra in fitting.items()
    }
    extra_keys = {name: extra_key(name, formats[name]) for name in fitting}
    return Need(
        model=spec.name,
        precision=plan.precision,
        denoiser=denoiser,
        keys={**keys, **extra_keys},
        sizes={**own_sizes, **{extra_keys[name]: size for name, size in extra_sizes.items()}},
        stages=stages_of(spec, method_of(spec, spec.default_request())),
        saved_bytes=saved_bytes,
        stacks=tuple(_stack_needs(spec, stacks, fitting, extra_sizes)),
    )


def _stack_needs(
    spec: ModelSpec, stacks: Sequence[Stack], extras: Extras, sizes: Mapping[str, int]
) -> Iterator[StackNeed]:
    """Yield the declared stacks of a model, then each extra that none of them uses."""
    declared: set[str] = set()
    for stack in stacks:
        if stack.model == spec.name:
            declared |= {*stack_extras(stack, spec, extras)}
            yield _stack_need(spec, stack, extras, sizes, is_declared=True)
    for name, extra in extras.items():
        if name not in declared and can_be_named(extra):
            alone = Stack(model=spec.name, extras=(name,))
            yield _stack_need(spec, alone, extras, sizes, is_declared=False)


def _stack_need(
    spec: ModelSpec, stack: Stack, extras: Extras, sizes: Mapping[str, int], *, is_declared: bool
) -> StackNeed:
    def stages(without: Sequence[str] = ()) -> tuple[StagePlan, ...]:
        request = stack_request(stack.without(without), spec, extras)
        return stages_of(spec, method_of(spec, request))

    slot_bytes = max(stage.slot_bytes for stage in stages())
    by_size = sorted(stack.parts, key=lambda part: -sizes.get(part, slot_bytes))
    dropped: list[tuple[str, ...]] = [(part,) for part in by_size]
    dropped += [tuple(by_size[:count]) for count in range(2, len(by_size) + 1)]
    return StackNeed(
        name=stack.name,
        parts=stack.parts,
        stages=stages(),
        is_declared=is_declared,
        smaller=tuple((parts, stages(parts)) for parts in dropped),
    )


def all_sizes(needs: Sequence[Need]) -> dict[ComponentKey, int]:
    """Return the bytes of everything that has a place in a plan, each once, in order of needs."""
    return {key: size for need in needs for key, size in need.planned_sizes.items()}


def _sizes(spec: ModelSpec, plan: QuantizationPlan, weights: Weights | None) -> Mapping[str, int]:
    if weights is None:
        return known_bytes(spec, plan)
    return measured_bytes(spec, plan, weights)
