"""GPU memory that a model needs, stage by stage, in numbers only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pixpod.catalog import ModelSpec
from pixpod.engine.component_key import ComponentKey, own_keys
from pixpod.engine.memory.footprints import known_bytes, measured_bytes
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.families import Precision
from pixpod.methods import StagePlan, method_of, stages_of
from pixpod.weights.layout import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Components of a model by their names in pipelines, with their bytes, and its stages.

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

    @property
    def title(self) -> str:
        return f"{self.model} in {self.precision}"

    def components_of(self, stage: StagePlan) -> Mapping[ComponentKey, int]:
        """Return the bytes of each component of a stage."""
        return {self.keys[name]: self.sizes[self.keys[name]] for name in stage.components}

    def stage_bytes(self, stage: StagePlan, batch_size: int = 1) -> int:
        """Return the bytes of a stage's components and of its activations."""
        return sum(self.components_of(stage).values()) + stage.working_bytes(batch_size)


def need_of(
    spec: ModelSpec,
    plan: QuantizationPlan,
    weights: Weights | None = None,
    keys: Mapping[str, ComponentKey] | None = None,
) -> Need:
    """Return a model's need, from its files if there are any, else from the family's table.

    `keys` by component are the model's own unless it shares some with another model.

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
    )


def all_sizes(needs: Sequence[Need]) -> dict[ComponentKey, int]:
    """Return the bytes of all components of several models, each once, in the order of needs."""
    return {key: size for need in needs for key, size in need.sizes.items()}


def _sizes(spec: ModelSpec, plan: QuantizationPlan, weights: Weights | None) -> Mapping[str, int]:
    if weights is None:
        return known_bytes(spec, plan)
    return measured_bytes(spec, plan, weights)
