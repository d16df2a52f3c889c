"""GPU memory that a model needs: bytes of its components and, stage by stage, of its activations.

Sizes are computed from files where there are any, else from the family's table. Numbers only.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from pixpod.catalog import ModelSpec
from pixpod.engine.component_key import ComponentKey, own_keys
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.errors import WeightsUnreadable
from pixpod.extras import ExtraSpec
from pixpod.families import GIB, ComponentSpec, Precision, Role
from pixpod.methods import StagePlan, method_of, stages_of
from pixpod.weights.layout import Weights, component_folder, tensor_paths

OVERHEAD_BYTES = 1 * GIB
"""CUDA context and workspaces of cuBLAS and cuDNN, which take 0.6 to 1.0 GiB."""

MARGIN_BYTES = GIB // 2
"""Memory that the driver shows and no plan uses, because an allocator wastes some."""

_SHIPPED_BYTES = round(0.02 * GIB)
"""Size of each component of this repository's small models, whatever their family."""


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
        size_bytes = _bytes_on_disk(tensor_paths(weights.folder))
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
class Need:
    """Components of a model by their names in pipelines, with their bytes, and its stages.

    The stages are those of one image of the default size. `saved_bytes` is what the denoiser
    would save in 8 bits, 0 if it is in 8 bits or cannot be. `extras` have the bytes of what
    requests may add to the denoiser's stage, or, for the names in `refiners`, use in its place;
    nothing stays on the device for them.
    """

    model: str
    precision: Precision
    denoiser: str
    keys: Mapping[str, ComponentKey]
    sizes: Mapping[ComponentKey, int]
    stages: tuple[StagePlan, ...]
    saved_bytes: int
    extras: Mapping[str, int] = field(default_factory=dict)
    refiners: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        return f"{self.model} in {self.precision}"

    def components_of(self, stage: StagePlan) -> Mapping[ComponentKey, int]:
        """Return the bytes of each component of a stage, without extras."""
        keys = [self.keys[name] for name in stage.components if name in self.keys]
        return {key: self.sizes[key] for key in keys}

    def extra_bytes_of(self, stage: StagePlan) -> int:
        """Return the bytes of the extras of a stage."""
        return sum(self.extras.get(name, 0) for name in stage.components)

    def stage_bytes(self, stage: StagePlan, batch_size: int = 1) -> int:
        """Return the bytes of a stage's components and of its activations."""
        components_bytes = sum(self.components_of(stage).values()) + self.extra_bytes_of(stage)
        return components_bytes + stage.working_bytes(batch_size)


def need_of(
    spec: ModelSpec,
    plan: QuantizationPlan,
    weights: Weights | None = None,
    keys: Mapping[str, ComponentKey] | None = None,
    extras: Mapping[str, int] = MappingProxyType({}),
    refiners: Collection[str] = (),
) -> Need:
    """Return a model's need, from its files if there are any, else from the family's table.

    `keys` by component are the model's own unless it shares some with another model. `extras`
    are the bytes of those that it is offered with, `refiners` among them.

    Raises NoFootprint for a precision that the table does not have, WeightsUnreadable.
    """
    sizes = _sizes(spec, plan, weights)
    keys = keys or own_keys(spec, plan.precision)
    denoiser = spec.family.denoiser
    saved_bytes = 0
    if spec.family.quantization and not plan.precision.is_8_bit:
        smaller = _sizes(spec, replace(plan, precision=Precision.FLOAT8_DYNAMIC), weights)
        saved_bytes = sizes[denoiser] - smaller[denoiser]
    return Need(
        model=spec.name,
        precision=plan.precision,
        denoiser=denoiser,
        keys=keys,
        sizes={keys[name]: size for name, size in sizes.items()},
        stages=stages_of(spec, method_of(spec, spec.default_request())),
        saved_bytes=saved_bytes,
        extras=extras,
        refiners=frozenset(refiners),
    )


def all_sizes(needs: Sequence[Need]) -> dict[ComponentKey, int]:
    """Return the bytes of all components of several models, each once, in the order of needs."""
    return {key: size for need in needs for key, size in need.sizes.items()}


def _sizes(spec: ModelSpec, plan: QuantizationPlan, weights: Weights | None) -> Mapping[str, int]:
    if weights is None:
        return known_bytes(spec, plan)
    return measured_bytes(spec, plan, weights)
