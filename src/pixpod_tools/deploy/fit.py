"""Plan models on a GPU as a worker there would, or say why they do not fit."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pixpod.catalog import ModelSpec
from pixpod.engine.memory.needs import known_bytes, need_of
from pixpod.engine.memory.residency import ResidencyPlan, make_plan
from pixpod.engine.precision.precision import QuantizationPlan, choose_precision
from pixpod.errors import WorkerError
from pixpod.extras import Extras
from pixpod.families import GIB, Precision
from pixpod.gpus import Gpu
from pixpod.stacks import Stack
from pixpod_tools.plan.served import checkpoint_of, target_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model as its files have it, and the deployment's PIXPOD_PRECISION if there is one.

    `extras` and `stacks` are those of the deployment, also of other models.
    """

    spec: ModelSpec
    baked: QuantizationPlan
    requested: Precision | None = None
    extras: Extras = field(default_factory=dict)
    stacks: tuple[Stack, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A plan for one GPU, or the reason why there is none.

    `is_as_baked`: every denoiser runs in the precision of its files.
    """

    gpu: Gpu
    plan: ResidencyPlan | None
    is_as_baked: bool = False
    reason: str = ""


def fit(models: Sequence[ServedModel], gpu: Gpu) -> Fit:
    """Plan as a worker on this GPU would."""
    target = target_of(gpu)
    needs, is_as_baked = [], True
    try:
        for model in models:
            plan = choose_precision(
                model.spec,
                checkpoint_of(model.spec, model.baked),
                target.hardware,
                requested=model.requested,
                is_compiling=True,
            )
            is_as_baked = is_as_baked and _is_as_baked(model, plan)
            loaded_as = _as_loaded(plan, model.baked)
            needs.append(need_of(model.spec, loaded_as, extras=model.extras, stacks=model.stacks))
        return Fit(gpu=gpu, plan=make_plan(needs, target.budget), is_as_baked=is_as_baked)
    except WorkerError as error:
        return Fit(gpu=gpu, plan=None, reason=str(error))


def _as_loaded(plan: QuantizationPlan, baked: QuantizationPlan) -> QuantizationPlan:
    """Return a plan that names the formats of the files where the worker keeps those."""
    if baked.precision is not Precision.FLOAT8_DYNAMIC:
        return plan
    return replace(plan, t5=plan.t5 or baked.t5, adaln=baked.adaln)


def files_gb(models: Sequence[ServedModel]) -> float:
    """Return the size of all files, in 10^9 bytes."""
    extras = {name: extra.gib_16 * GIB for each in models for name, extra in each.extras.items()}
    own = (sum(known_bytes(each.spec, each.baked).values()) for each in models)
    return (sum(own) + sum(extras.values())) / 1e9


def _is_as_baked(model: ServedModel, plan: QuantizationPlan) -> bool:
    is_float8 = model.baked.precision is Precision.FLOAT8_DYNAMIC
    return not is_float8 or plan.precision is Precision.FLOAT8_DYNAMIC
