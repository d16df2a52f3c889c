"""Preprocessors that make control images of given ones, and what payloads say about them."""

from collections.abc import Collection, Iterator, Mapping

from pixpod.catalog import ModelSpec
from pixpod.contract.condition_inputs import ControlNetInput
from pixpod.contract.job_input import JobInput
from pixpod.contract.problems import wrong
from pixpod.errors import Problem
from pixpod.extras import DEPTH, ExtraKind, Extras, extras_for
from pixpod.job import PreprocessorOptions

CANNY = "canny"


def preprocessors_of(spec: ModelSpec, extras: Extras) -> Mapping[str, PreprocessorOptions]:
    """Return what can make control images for a model, by their types.

    Edges take no extra, and depth the first estimator of the deployment.
    """
    found = {CANNY: PreprocessorOptions(type=CANNY)}
    for extra in extras_for(spec, extras, ExtraKind.DEPTH_ESTIMATOR)[:1]:
        found[DEPTH] = PreprocessorOptions(type=DEPTH, estimator=extra.name, size_px=extra.size_px)
    return found


def check_preprocessing(
    path: str, control: ControlNetInput, spec: ModelSpec, extras: Extras, types: Collection[str]
) -> Iterator[Problem]:
    """Yield the problem of one element, whose type is one of `types`."""
    known = preprocessors_of(spec, extras)
    if control.preprocess and control.type not in known:
        made = ", ".join(sorted(known.keys() & types)) or "none"
        accepted = f"absent with {control.type}: of the types of {spec.name}, {made} can be made"
        yield wrong(f"{path}.preprocess", True, accepted)


def num_made(given: JobInput) -> int:
    """Return how many control images are files of the job."""
    if given.output is None or not given.output.controls:
        return 0
    return sum(bool(each and each.preprocess) for each in given.controlnets or ())


def check_made(given: JobInput, malformed: Collection[str]) -> Iterator[Problem]:
    """Yield the problem of a job that asks for control images and has none made."""
    is_asked = given.output is not None and given.output.controls
    is_unknown = any(path.startswith("controlnets") for path in malformed)
    if is_asked and not is_unknown and not num_made(given):
        accepted = "absent unless a control image is made by controlnets[].preprocess"
        yield wrong("output.controls", True, accepted)
