"""Checks what a payload says about LoRAs, and finds what has to be fetched for them."""

from collections.abc import Collection, Iterator

from pixpod.catalog import ModelSpec
from pixpod.contract.condition_inputs import LoraInput
from pixpod.contract.job_input import JobInput
from pixpod.contract.problems import did_you_mean, wrong
from pixpod.errors import Problem
from pixpod.inputs.named import NamedLora
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Target, Targets, Use

DEFAULT_SCALE = 1.0


def check_loras(given: JobInput, spec: ModelSpec) -> Iterator[Problem]:
    """Yield the problems of the list, apart from the sources that it names."""
    if not given.loras:
        return
    if spec.family.lora is None:
        accepted = f"absent: {spec.family.title} models take none"
        yield wrong("loras", given.loras, accepted)
        return
    most = spec.family.lora.max_files
    if len(given.loras) > most:
        yield wrong("loras", given.loras, f"at most {most} for {spec.name}")
    seen: dict[str, set[str]] = {"source": set(), "sha256": set()}
    for index, lora in _elements(given):
        for field, values in seen.items():
            value = getattr(lora, field)
            if value in values:
                yield wrong(f"loras[{index}].{field}", value, "each LoRA once", "add up the scales")
                break
            if value is not None:
                values.add(value)


def find_loras(
    given: JobInput, targets: Targets, names: Collection[str]
) -> tuple[tuple[NamedLora, ...], list[Problem]]:
    """Return the LoRAs that a payload names, and the problems of their sources.

    `names` are those of the deployment.
    """
    found = []
    problems = []
    for index, lora in _elements(given):
        path = f"loras[{index}]"
        source = _parse_source(f"{path}.source", lora.source, targets, names)
        if isinstance(source, Problem):
            problems.append(source)
            continue
        scale = DEFAULT_SCALE if lora.scale is None else lora.scale
        found.append(NamedLora(path=path, source=source, scale=scale, sha256=lora.sha256))
    return tuple(found), problems


def _elements(given: JobInput) -> Iterator[tuple[int, LoraInput]]:
    """Yield the well-formed elements with their indices; the others are None."""
    return ((index, lora) for index, lora in enumerate(given.loras or ()) if lora is not None)


def _parse_source(
    field: str, text: str, targets: Targets, names: Collection[str]
) -> Target | str | Problem:
    if "://" in text[:16]:
        try:
            return targets.parse(text, Use.READ)
        except Refused as refused:
            return refused.problem(field)
    if text in names:
        return text
    accepted = "a URL" + (", or one of " + ", ".join(sorted(names)) if names else "")
    return wrong(field, text, accepted, did_you_mean(text, sorted(names)))
