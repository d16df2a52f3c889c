"""A platform's job (raw JSON) to our types, and our result back; the only place with raw dicts.

Refuses what it does not know, collects all problems before it refuses, and changes nothing
silently. Knows no engine: limits and defaults come from the model's spec.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from pixpod.catalog import ModelSpec
from pixpod.contract import API_VERSION, MAX_SEED, NOT_SUPPORTED, JobInput, OutputInput, Reply
from pixpod.errors import InvalidInput, NotSupported, Problem, WorkerError
from pixpod.job import (
    Delivery,
    GenerationRequest,
    ImageFormat,
    Job,
    JobResult,
    OutputOptions,
    StoredImage,
)
from pixpod.problems import to_problems, wrong
from pixpod.rules import Offer, check_values, find_model
from pixpod.settings import clean_prefix

DEFAULT_QUALITY = 90


def parse_job(raw: Mapping[str, Any], offer: Offer) -> Job:
    """Check a job as the platform hands it over; keys beside `id` and `input` are its own.

    Raises InvalidInput with every problem found, or NotSupported if all that is wrong are
    features that are not there yet.
    """
    job_id = raw.get("id")
    problems = [] if isinstance(job_id, str) and job_id else [wrong("id", job_id, "a string")]
    given = raw.get("input")
    if not isinstance(given, dict):
        raise InvalidInput([*problems, wrong("input", given, "an object")])
    unsupported = list(_unsupported(raw, given))
    checked = _check_types(_without(given, (problem.field for problem in unsupported)))
    problems += checked.problems
    spec = find_model(checked.input.model, offer)
    if isinstance(spec, ModelSpec):
        problems += check_values(checked.input, spec, offer)
    elif spec is not None:
        problems.append(spec)
    if problems:
        raise InvalidInput([*problems, *unsupported])
    if unsupported:
        raise NotSupported(unsupported)
    assert isinstance(spec, ModelSpec) and isinstance(job_id, str)
    return Job(
        id=job_id,
        request=_build_request(job_id, checked.input, spec),
        output=_build_output(checked.input.output or OutputInput(), offer),
    )


def render_result(result: JobResult) -> dict[str, Any]:
    """A result as the handler returns it: JSON types only. Any: a JSON document."""
    reply = Reply.model_validate(
        {
            "api_version": API_VERSION,
            "images": [_render_image(stored) for stored in result.images],
            "model": asdict(result.model),
            "timings_ms": result.timings_ms,
            "cost": asdict(result.cost),
            "worker": asdict(result.worker),
            "warnings": list(result.warnings),
        }
    )
    dumped = reply.model_dump(mode="json")
    dumped["images"] = [image.model_dump(mode="json", exclude_none=True) for image in reply.images]
    return dumped


def render_error(error: WorkerError) -> dict[str, Any]:
    """An error as the handler returns it; the platform takes a string and drops objects."""
    reply: dict[str, Any] = {"error": str(error)}
    if error.refresh_worker:
        reply["refresh_worker"] = True
    return reply


def _render_image(stored: StoredImage) -> dict[str, Any]:
    image = stored.image
    return {
        "url": stored.url,
        "data": stored.data,
        "path": stored.path,
        "key": stored.key,
        "seed": image.seed,
        "width": image.width,
        "height": image.height,
        "content_type": image.format.content_type,
        "size_bytes": len(image.data),
        "sha256": image.sha256,
    }


# --- what is not there yet -----------------------------------------------------------------


def _unsupported(raw: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Problem]:
    output = given.get("output")
    names = {f"output.{name}" for name in output} if isinstance(output, dict) else set()
    if raw.get("s3Config") is not None:
        names.add("s3Config")
    for field in sorted(NOT_SUPPORTED & (names | given.keys())):
        yield Problem(field=field, value=None, accepted="absent: not supported by this version")
    if isinstance(output, dict) and output.get("delivery") == Delivery.PUT:
        accepted = "another delivery: not supported by this version"
        yield Problem(field="output.delivery", value="put", accepted=accepted)


def _without(given: Mapping[str, Any], fields: Iterator[str]) -> dict[str, Any]:
    kept = {
        name: dict(value) if name == "output" and isinstance(value, dict) else value
        for name, value in given.items()
    }
    for field in fields:
        outer, _, inner = field.partition(".")
        if inner:
            kept[outer].pop(inner, None)
        else:
            kept.pop(outer, None)
    return kept


# --- types, names and absolute ranges --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Checked:
    """The fields that are well formed, and what is wrong with the others."""

    input: JobInput
    problems: list[Problem]


def _check_types(given: dict[str, Any]) -> _Checked:
    try:
        return _Checked(JobInput.model_validate(given), [])
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
    bad_fields = {_field_of(error["loc"]) for error in errors}
    sound = _without(given, iter(bad_fields))
    return _Checked(_partial_input(sound), to_problems(errors))


def _partial_input(sound: dict[str, Any]) -> JobInput:
    """Sound fields only; those that are missing stay None although the type has no None."""
    required = {"model": None, "prompt": None}
    output = sound.pop("output", None)
    partial = JobInput.model_construct(**{**required, **_valid(JobInput, sound)})
    if isinstance(output, dict):
        partial.output = OutputInput.model_validate(output)
    return partial


def _valid(model: type[JobInput], sound: dict[str, Any]) -> dict[str, Any]:
    """Sound fields as the model converts them, with stand-ins for what it requires."""
    filled = model.model_validate({"model": "-", "prompt": "-", **sound})
    return {name: getattr(filled, name) for name in sound}


def _field_of(loc: Sequence[str | int]) -> str:
    """`output.quality` of ('output', 'quality'); `seed` of ('seed', 2)."""
    return ".".join(str(part) for part in loc[: 2 if loc[0] == "output" else 1])


# --- the parsed job ------------------------------------------------------------------------


def _build_request(job_id: str, given: JobInput, spec: ModelSpec) -> GenerationRequest:
    defaults = spec.defaults
    return GenerationRequest(
        model=spec.name,
        prompt=given.prompt,
        prompt_2=given.prompt_2,
        negative_prompt=given.negative_prompt,
        width=given.width or defaults.width,
        height=given.height or defaults.height,
        num_inference_steps=given.num_inference_steps or defaults.num_inference_steps,
        guidance_scale=(
            defaults.guidance_scale if given.guidance_scale is None else given.guidance_scale
        ),
        true_cfg_scale=given.true_cfg_scale,
        max_sequence_length=given.max_sequence_length or defaults.max_sequence_length,
        scheduler=given.scheduler or defaults.scheduler,
        seeds=_choose_seeds(job_id, given),
        truncate_long_prompt=given.on_long_prompt == "truncate",
        deterministic=bool(given.deterministic),
    )


def _choose_seeds(job_id: str, given: JobInput) -> tuple[int, ...]:
    """One per image: as given, or counted up from the one given, or derived from the job."""
    seeds = given.seed or []
    num_images = given.num_images or max(len(seeds), 1)
    if len(seeds) == num_images:
        return tuple(seeds)
    if seeds:
        return tuple((seeds[0] + index) % (MAX_SEED + 1) for index in range(num_images))
    return tuple(_derive_seed(job_id, index) for index in range(num_images))


def _derive_seed(job_id: str, index: int) -> int:
    """The same for the same job and image, so that a retried job draws the same picture."""
    digest = hashlib.sha256(json.dumps([job_id, index]).encode()).digest()
    return int.from_bytes(digest[:8]) % (MAX_SEED + 1)


def _build_output(given: OutputInput, offer: Offer) -> OutputOptions:
    image_format = given.format or ImageFormat.PNG
    quality = None if image_format is ImageFormat.PNG else given.quality or DEFAULT_QUALITY
    return OutputOptions(
        format=image_format,
        quality=quality,
        delivery=given.delivery or offer.deliveries[0],
        key_prefix=clean_prefix(given.key_prefix or ""),
        metadata=given.metadata is not False,
    )
