"""Converts the platform's jobs (raw JSON) to our types, and results back to JSON.

Refuses unknown fields, collects all problems before it refuses, and changes nothing silently.
Knows no engine: limits and defaults come from the model's spec.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr

from pixpod.catalog import ModelSpec
from pixpod.contract.conditions import find_images, mode_of, num_references, strength_of
from pixpod.contract.controls import build_controls
from pixpod.contract.delivery_input import OutputInput
from pixpod.contract.fields import check_types
from pixpod.contract.image_prompt import build_image_prompt
from pixpod.contract.job_input import JobInput
from pixpod.contract.loras import find_loras
from pixpod.contract.places import build_bucket, build_put_url, check_places, parse_s3_config
from pixpod.contract.problems import first_ones, is_unicode, wrong
from pixpod.contract.refiner import build_refiner, total_steps
from pixpod.contract.reply import Reply
from pixpod.contract.rules import (
    Capabilities,
    check_values,
    choose_delivery,
    choose_safety,
    find_model,
)
from pixpod.contract.scalars import API_VERSION, MAX_SEED
from pixpod.contract.stacks import check_stack, fill_stack, name_for_caller
from pixpod.contract.upscale import build_upscaler
from pixpod.errors import (
    InvalidInput,
    InvalidSettings,
    Problem,
    PutRefused,
    WorkerError,
)
from pixpod.extras import Extras
from pixpod.inputs.named import ParsedJob, inputs_digest
from pixpod.job import (
    Delivery,
    DroppedImage,
    GenerationRequest,
    ImageFormat,
    ImagePromptOptions,
    JobResult,
    LongPrompt,
    OutputOptions,
    RefinerOptions,
    SafetyAction,
    SafetyVerdict,
    StoredImage,
    UpscalerOptions,
)
from pixpod.outputs.keys import idempotent_name
from pixpod.outputs.storage import clean_prefix

DEFAULT_QUALITY = 90
NO_SECRET = SecretStr("")


def _now() -> datetime:
    return datetime.now(UTC)


def parse_job(
    raw: Mapping[str, Any],
    capabilities: Capabilities,
    key_secret: SecretStr = NO_SECRET,
    *,
    now: Callable[[], datetime] = _now,
) -> ParsedJob:
    """Check a job as the platform hands it over; keys beside `id` and `input` are the platform's.

    `key_secret` hides the `idempotency_key` in the name of the job.

    Raises InvalidInput with every problem found (the first MAX_PROBLEMS of very many),
    NotSupported if its only problems are features that this version does not have, or PutRefused if
    they are places that it names for its images,
    or InvalidSettings for a webhook of a deployment that signs none.
    """
    job_id = raw.get("id")
    problems = list(_check_id(job_id))
    given = raw.get("input")
    if not isinstance(given, dict):
        raise InvalidInput([*problems, wrong("input", given, "an object")])
    problems += check_stack(given, capabilities.presets)
    given, stack = fill_stack(given, capabilities.presets, capabilities.models, capabilities.extras)
    checked = check_types(given)
    problems += checked.problems
    s3_config, s3_problems = parse_s3_config(raw.get("s3Config"))
    has_s3_config = raw.get("s3Config") is not None
    spec = find_model(checked.input.model, capabilities)
    if isinstance(spec, ModelSpec):
        problems += check_values(
            checked.input,
            spec,
            capabilities,
            checked.malformed,
            has_s3_config=has_s3_config,
        )
    elif spec is not None:
        problems.append(spec)
    images, image_problems = find_images(checked.input, capabilities.targets)
    loras, lora_problems = find_loras(checked.input, capabilities.targets, capabilities.lora_names)
    problems += image_problems + lora_problems
    problems += s3_problems
    refusals = list(check_places(checked.input, s3_config, capabilities.targets, now()))
    _raise_first(*(name_for_caller(found, stack) for found in (problems, refusals)))
    if checked.input.webhook_url is not None and not capabilities.signs_webhooks:
        raise InvalidSettings(
            "PIXPOD_WEBHOOK_SECRETS: expected one or two secrets, because this job has a "
            "webhook_url, got none"
        )
    assert isinstance(spec, ModelSpec) and isinstance(job_id, str)
    key, output = checked.input.idempotency_key, checked.input.output or OutputInput()
    delivery = choose_delivery(output, capabilities, has_s3_config=has_s3_config)
    options = _build_output(output, delivery, choose_safety(checked.input, capabilities))
    named = key and idempotent_name(key, key_prefix=options.key_prefix, secret=key_secret)
    return ParsedJob(
        id=job_id,
        name=named or job_id,
        idempotency_key=key,
        request=_build_request(named or job_id, checked.input, spec, capabilities.extras),
        output=options,
        execution_timeout_s=_execution_timeout_s(raw),
        put_urls=tuple(map(build_put_url, output.put_urls or ())),
        bucket=build_bucket(s3_config) if s3_config else None,
        images=images,
        loras=loras,
        inputs_digest=inputs_digest(images, loras),
        stack=stack,
    )


def _raise_first(problems: list[Problem], refusals: list[Problem]) -> None:
    """Raise one error for all problems; its code is their kind's if they are of one kind."""
    kinds = {InvalidInput: problems, PutRefused: refusals}
    found = [error for error, listed in kinds.items() if listed]
    if found:
        error = found[0] if len(found) == 1 else InvalidInput
        raise error(first_ones([*problems, *refusals]))


def _execution_timeout_s(raw: Mapping[str, Any]) -> float | None:
    """Read `policy.executionTimeout`, which the platform has checked; other values are ignored."""
    policy = raw.get("policy")
    timeout_ms = policy.get("executionTimeout") if isinstance(policy, dict) else None
    if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, int | float):
        return None
    return timeout_ms / 1e3 if timeout_ms > 0 else None


def render_result(result: JobResult) -> dict[str, Any]:
    """Render a result as the handler returns it: JSON types only. Any: a JSON document."""
    reply = Reply.model_validate(
        {
            "api_version": API_VERSION,
            "images": _render_images(result.images, result.dropped),
            "model": result.model,
            "steps": result.steps,
            "timings_ms": result.timings_ms,
            "cost": result.cost,
            "worker": result.worker,
            "warnings": list(result.warnings),
            "adapters": list(result.adapters),
            "refiner": _render_refiner(result.refiner),
            "ip_adapter": _render_image_prompt(result.image_prompt),
            "stack": result.stack,
            "upscaler": _render_upscaler(result.upscaler),
            "controls": [
                {**_render_file(stored), "index": index}
                for index, stored in result.controls.items()
            ],
        },
        from_attributes=True,
    )
    dumped = reply.model_dump(mode="json")
    dumped["timings_ms"] = reply.timings_ms.model_dump(mode="json", exclude_none=True)
    dumped["images"] = [file.model_dump(mode="json", exclude_none=True) for file in reply.images]
    dumped["controls"] = [
        file.model_dump(mode="json", exclude_none=True) for file in reply.controls
    ]
    return dumped


def render_error(error: WorkerError) -> dict[str, Any]:
    """Render an error as the handler returns it; the platform takes a string and drops objects."""
    return {"error": str(error)}


def is_describe(raw: Mapping[str, Any]) -> bool:
    """Return whether a job requests a description of the deployment: `{"describe": true}`."""
    return raw.get("input") == {"describe": True}


def _render_refiner(refiner: RefinerOptions | None) -> dict[str, Any] | None:
    if refiner is None:
        return None
    return {"name": refiner.name, "steps": refiner.num_inference_steps}


def _render_image_prompt(prompt: ImagePromptOptions | None) -> dict[str, Any] | None:
    if prompt is None:
        return None
    return {
        "name": prompt.adapter,
        "encoder": prompt.encoder,
        "images": prompt.num_images,
        "scale": prompt.scale,
    }


def _render_images(
    images: Sequence[StoredImage], dropped: Sequence[DroppedImage]
) -> list[dict[str, Any]]:
    by_index = {stored.image.index: _render_image(stored) for stored in images}
    by_index |= {each.index: _render_dropped(each) for each in dropped}
    return [by_index[index] for index in sorted(by_index)]


def _render_dropped(image: DroppedImage) -> dict[str, Any]:
    sizes = {"seed": image.seed, "width": image.width, "height": image.height}
    return sizes | _render_verdict(image.verdict)


def _render_verdict(verdict: SafetyVerdict | None) -> dict[str, Any]:
    return {"nsfw": verdict.nsfw, "nsfw_score": round(verdict.score, 4)} if verdict else {}


def _render_upscaler(upscaler: UpscalerOptions | None) -> dict[str, Any] | None:
    if upscaler is None:
        return None
    return {"name": upscaler.name, "scale": upscaler.scale}


def _render_image(stored: StoredImage) -> dict[str, Any]:
    return {**_render_file(stored), "seed": stored.image.seed}


def _render_file(stored: StoredImage) -> dict[str, Any]:
    image = stored.image
    return _render_verdict(image.verdict) | {
        "url": stored.url,
        "data": stored.data,
        "path": stored.path,
        "key": stored.key,
        "width": image.width,
        "height": image.height,
        "content_type": image.format.content_type,
        "size_bytes": image.size_bytes,
        "sha256": image.sha256,
    }


# --- features that are not supported, and the id ---------------------------------------------


def _check_id(job_id: object) -> Iterator[Problem]:
    if not isinstance(job_id, str) or not job_id:
        yield wrong("id", job_id, "a string that is not empty")
    elif not is_unicode(job_id):
        yield wrong("id", job_id, "a string of valid Unicode")


# --- the parsed job ------------------------------------------------------------------------


def _build_request(
    job_name: str, given: JobInput, spec: ModelSpec, extras: Extras
) -> GenerationRequest:
    changes = {
        "width": given.width,
        "height": given.height,
        "num_inference_steps": total_steps(given, spec),
        "scheduler": given.scheduler,
        "guidance_scale": given.guidance_scale,
        "max_sequence_length": given.max_sequence_length,
        "quality": given.quality,
    }
    return spec.default_request(
        **{name: value for name, value in changes.items() if value is not None},
        prompt=given.prompt,
        prompt_2=given.prompt_2,
        negative_prompt=given.negative_prompt,
        true_cfg_scale=given.true_cfg_scale,
        mode=mode_of(given, spec),
        strength=strength_of(given, spec),
        num_references=num_references(given),
        on_long_prompt=given.on_long_prompt or LongPrompt.REFUSE,
        prompt_weights=bool(given.prompt_weights),
        clip_skip=given.clip_skip or 0,
        seeds=_choose_seeds(job_name, given),
        controls=build_controls(given, spec, extras),
        refiner=build_refiner(given, spec, extras),
        image_prompt=build_image_prompt(given, spec, extras),
        upscaler=build_upscaler(given, spec, extras),
        isolated=bool(given.deterministic),
    )


def _choose_seeds(job_name: str, given: JobInput) -> tuple[int, ...]:
    """Return one seed per image: as given, counted up, or derived from the name of the job."""
    seeds = given.seed or []
    num_images = given.num_images or max(len(seeds), 1)
    if len(seeds) == num_images:
        return tuple(seeds)
    if seeds:
        return tuple((seeds[0] + index) % (MAX_SEED + 1) for index in range(num_images))
    return tuple(_derive_seed(job_name, index) for index in range(num_images))


def _derive_seed(job_name: str, index: int) -> int:
    """Return one seed per job and image, so that a retried job gives the same images."""
    digest = hashlib.sha256(json.dumps([job_name, index]).encode()).digest()
    return int.from_bytes(digest[:8]) % (MAX_SEED + 1)


def _build_output(
    given: OutputInput, delivery: Delivery, safety: SafetyAction | None
) -> OutputOptions:
    image_format = given.format or ImageFormat.PNG
    quality = None if image_format is ImageFormat.PNG else given.quality or DEFAULT_QUALITY
    return OutputOptions(
        format=image_format,
        quality=quality,
        delivery=delivery,
        key_prefix=clean_prefix(given.key_prefix or ""),
        name=given.name or "",
        metadata=given.metadata is not False,
        fallback=given.fallback is not False,
        safety=safety,
        controls=bool(given.controls),
    )
