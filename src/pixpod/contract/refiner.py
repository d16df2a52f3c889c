"""Checks what a payload says about a refiner, and divides the steps between it and the model."""

from collections.abc import Collection, Iterator

from pixpod.catalog import ModelSpec
from pixpod.contract.condition_inputs import RefinerInput
from pixpod.contract.job_input import JobInput
from pixpod.contract.problems import did_you_mean, wrong
from pixpod.errors import Problem
from pixpod.extras import ExtraKind, Extras, extras_for
from pixpod.job import RefinerOptions

_NO_SPLIT = "a step of others takes several calls, which two models cannot share"


def refiners_of(spec: ModelSpec, extras: Extras) -> tuple[str, ...]:
    """Return the names of the refiners that a model can be served with."""
    return tuple(extra.name for extra in extras_for(spec, extras, ExtraKind.REFINER))


def num_refined(given: JobInput, spec: ModelSpec) -> int:
    """Return the steps of the refiner; 0 without one, or where a field is wrong."""
    refiner = given.refiner
    if refiner is None:
        return 0
    if refiner.high_noise_frac is None:
        return refiner.num_inference_steps or 0
    steps = _given_steps(given, spec)
    return steps - round(steps * refiner.high_noise_frac)


def total_steps(given: JobInput, spec: ModelSpec) -> int:
    """Return the steps of the whole schedule, of which a strength may leave some out."""
    steps = _given_steps(given, spec)
    has_own = given.refiner is not None and given.refiner.high_noise_frac is None
    return steps + num_refined(given, spec) if has_own else steps


def check_refiner(
    given: JobInput, spec: ModelSpec, extras: Extras, malformed: Collection[str]
) -> Iterator[Problem]:
    """Yield the problems of a refiner, apart from a strength that leaves the model no step."""
    refiner = given.refiner
    if refiner is None:
        return
    if spec.family.refiner is None:
        yield wrong("refiner", _shown(refiner), f"absent: {spec.family.title} models have none")
        return
    names = refiners_of(spec, extras)
    if not names:
        yield wrong("refiner", _shown(refiner), f"absent: {spec.name} has no refiner here")
        return
    if spec.step_counts:
        accepted = f"absent: {spec.name} is made for whole schedules of its own steps"
        yield wrong("refiner", _shown(refiner), accepted)
        return
    yield from _check_name(refiner, names, malformed)
    yield from _check_scheduler(given, spec)
    if not any(path.startswith(("refiner.", "num_inference_steps")) for path in malformed):
        yield from _check_share(given, refiner, spec)


def build_refiner(given: JobInput, spec: ModelSpec, extras: Extras) -> RefinerOptions | None:
    """Return the refiner of a payload without problems."""
    if given.refiner is None:
        return None
    return RefinerOptions(
        name=given.refiner.name or refiners_of(spec, extras)[0],
        num_inference_steps=num_refined(given, spec),
    )


def _given_steps(given: JobInput, spec: ModelSpec) -> int:
    return given.num_inference_steps or spec.defaults.num_inference_steps


def _check_name(
    refiner: RefinerInput, names: tuple[str, ...], malformed: Collection[str]
) -> Iterator[Problem]:
    if refiner.name is None and (len(names) == 1 or "refiner.name" in malformed):
        return
    if refiner.name not in names:
        hint = did_you_mean(refiner.name, names) if refiner.name else None
        yield wrong("refiner.name", refiner.name, f"one of {', '.join(names)}", hint)


def _check_scheduler(given: JobInput, spec: ModelSpec) -> Iterator[Problem]:
    schedulers = spec.scheduler_specs
    name = given.scheduler or spec.defaults.scheduler
    if name in schedulers and not schedulers[name].can_be_split:
        accepted = ", ".join(each for each in schedulers if schedulers[each].can_be_split)
        yield wrong("scheduler", name, f"one of {accepted} with a refiner", _NO_SPLIT)


def _check_share(given: JobInput, refiner: RefinerInput, spec: ModelSpec) -> Iterator[Problem]:
    own, share = refiner.num_inference_steps, refiner.high_noise_frac
    if own is not None and share is not None:
        yield wrong("refiner", _shown(refiner), "num_inference_steps or high_noise_frac, not both")
    elif share is not None:
        yield from _check_fraction(given, share, spec)
    elif own is None:
        yield wrong("refiner", _shown(refiner), "num_inference_steps or high_noise_frac in it")
    elif _given_steps(given, spec) <= spec.limits.max_steps < total_steps(given, spec):
        most = f"at most {spec.limits.max_steps} for {spec.name}"
        yield wrong("refiner.num_inference_steps", own, f"{most}, num_inference_steps included")


def _check_fraction(given: JobInput, share: float, spec: ModelSpec) -> Iterator[Problem]:
    steps = _given_steps(given, spec)
    if steps < 2:
        accepted = "at least 2 with high_noise_frac, one for each model"
        yield wrong("num_inference_steps", steps, accepted)
    elif not 0 < num_refined(given, spec) < steps:
        accepted = f"{1 / steps:.3f} to {1 - 1 / steps:.3f}, which leave each model one of {steps}"
        yield wrong("refiner.high_noise_frac", share, f"{accepted} steps")


def _shown(refiner: RefinerInput) -> dict[str, object]:
    return refiner.model_dump(exclude_none=True)
