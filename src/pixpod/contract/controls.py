"""Checks what a payload says about control images, and chooses the nets that see them."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from pixpod.catalog import ModelSpec
from pixpod.contract.condition_inputs import ControlNetInput
from pixpod.contract.job_input import JobInput
from pixpod.contract.preprocessing import check_preprocessing, preprocessors_of
from pixpod.contract.problems import did_you_mean, wrong
from pixpod.errors import Problem
from pixpod.extras import Extras, ExtraSpec, extras_for
from pixpod.families import ControlNetSpec, FamilySpec
from pixpod.job import ControlOptions, Mode, Quality
from pixpod.methods import is_guided, pipelines_of

DEFAULT_SCALE, DEFAULT_START, DEFAULT_END = 1.0, 0.0, 1.0

_NO_TURBO = "whether steps can be skipped beside a ControlNet is not known"


Nets = Mapping[str, ExtraSpec]
"""The net for each type of control image."""


def types_of(spec: ModelSpec, extras: Extras) -> frozenset[str]:
    """Return the types of control images that a model can be served with."""
    return frozenset(_first_nets(extras_for(spec, extras)))


def _first_nets(extras: Iterable[ExtraSpec]) -> Nets:
    nets: dict[str, ExtraSpec] = {}
    for extra in extras:
        for name in extra.types:
            nets.setdefault(name, extra)
    return nets


def _choose_nets(given: JobInput, spec: ModelSpec, extras: Extras) -> Nets | None:
    """Return nets for the types of a payload that go together; None if there are none.

    Types that no net sees are left out.
    """
    there = extras_for(spec, extras)
    nets = _first_nets(there)
    wanted = {control.type for _, control in elements(given)} & nets.keys()
    if not _controlnet(spec.family).union_pipelines:
        return nets
    for is_union in (False, True):
        chosen = _first_nets(extra for extra in there if extra.is_union == is_union)
        if wanted <= chosen.keys():
            return chosen
    return None


def elements(given: JobInput) -> Iterator[tuple[int, ControlNetInput]]:
    """Yield the well-formed elements with their indices; the others are None."""
    return (
        (index, control)
        for index, control in enumerate(given.controlnets or ())
        if control is not None
    )


def check_controls(
    given: JobInput, spec: ModelSpec, extras: Extras, mode: Mode, calls: tuple[int, int]
) -> Iterator[Problem]:
    """Yield the problems of the list, apart from the images that it names.

    `calls` are the denoiser calls of an image, and those of them in which nets can take part.
    """
    if not given.controlnets:
        return
    types = types_of(spec, extras)
    if not types:
        accepted = f"absent: {spec.name} has no ControlNets here"
        yield wrong("controlnets", given.controlnets, accepted)
        return
    if mode not in pipelines_of(spec.family, has_controls=True):
        field = "mask" if mode is Mode.INPAINT else "image"
        yield wrong(field, getattr(given, field), "absent with controlnets")
    if given.quality is Quality.TURBO:
        yield wrong("quality", given.quality.value, "max or default with controlnets", _NO_TURBO)
    if is_guided(given.true_cfg_scale) and mode not in _controlnet(spec.family).true_cfg_modes:
        accepted = "1 or absent with image and controlnets"
        yield wrong("true_cfg_scale", given.true_cfg_scale, accepted)
    yield from _check_number(given, spec.family)
    if _choose_nets(given, spec, extras) is None:
        accepted = "types of nets that go together: some of these need to be told the type"
        yield wrong("controlnets", [control.type for _, control in elements(given)], accepted)
    for index, control in elements(given):
        path = f"controlnets[{index}]"
        if control.type not in types:
            accepted = f"one of {', '.join(sorted(types))} for {spec.name}"
            yield wrong(f"{path}.type", control.type, accepted, _hint(control.type, types, extras))
        else:
            yield from check_preprocessing(path, control, spec, extras, types)
        yield from _check_range(path, control, *calls)


def build_controls(given: JobInput, spec: ModelSpec, extras: Extras) -> tuple[ControlOptions, ...]:
    """Return the controls of a payload without problems."""
    if not given.controlnets:
        return ()
    nets = _choose_nets(given, spec, extras)
    assert nets is not None, "such a payload has a problem"
    preprocessors = preprocessors_of(spec, extras)
    return tuple(
        ControlOptions(
            net=nets[control.type].name,
            union_mode=nets[control.type].modes.get(control.type),
            scale=DEFAULT_SCALE if control.scale is None else control.scale,
            start=_start(control),
            end=_end(control),
            preprocessor=preprocessors[control.type] if control.preprocess else None,
        )
        for _, control in elements(given)
    )


def _check_number(given: JobInput, family: FamilySpec) -> Iterator[Problem]:
    assert given.controlnets is not None
    most = _controlnet(family).max_controls
    if len(given.controlnets) > most:
        yield wrong("controlnets", given.controlnets, f"at most {most}")


def _controlnet(family: FamilySpec) -> ControlNetSpec:
    assert family.controlnet is not None, "one of its nets is offered"
    return family.controlnet


def _check_range(
    path: str, control: ControlNetInput, num_calls: int, num_controlled: int
) -> Iterator[Problem]:
    start, end = _start(control), _end(control)
    if start >= end:
        field, value = ("start", start) if control.start is not None else ("end", end)
        accepted = f"less than end, which is {end:g}"
        if field == "end":
            accepted = f"more than start, which is {start:g}"
        yield wrong(f"{path}.{field}", value, accepted)
    elif not any(
        start <= call / num_calls and (call + 1) / num_calls <= end
        for call in range(num_controlled)
    ):
        steps = num_calls if num_controlled == num_calls else f"the first {num_controlled}"
        accepted = f"a range with at least one whole step of {steps} in it"
        field, value = ("end", end) if control.end is not None else ("start", start)
        yield wrong(f"{path}.{field}", value, accepted)


def _hint(name: str, types: Collection[str], extras: Extras) -> str | None:
    """Return the type that was meant, or the families that have nets of this one."""
    families = {
        extra.family.title for extra in extras.values() if extra.family and name in extra.types
    }
    if families:
        return f"{name} is for {', '.join(sorted(families))} models here"
    return did_you_mean(name, sorted(types))


def _start(control: ControlNetInput) -> float:
    return DEFAULT_START if control.start is None else control.start


def _end(control: ControlNetInput) -> float:
    return DEFAULT_END if control.end is None else control.end
