"""Checks well-formed input, field by field, against what a model and a deployment allow.

Rules are independent of each other, so that all problems are found at once.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field

from pixpod.catalog import Catalog, ModelSpec
from pixpod.contract.conditions import check_images, mode_of, num_calls_of
from pixpod.contract.controls import check_controls
from pixpod.contract.delivery_input import OutputInput
from pixpod.contract.image_prompt import check_image_prompt
from pixpod.contract.job_input import JobInput
from pixpod.contract.loras import check_loras
from pixpod.contract.preprocessing import check_made
from pixpod.contract.problems import did_you_mean, wrong
from pixpod.contract.refiner import check_refiner, total_steps
from pixpod.contract.texts import check_texts
from pixpod.contract.upscale import check_upscale
from pixpod.errors import Problem
from pixpod.extras import Extras
from pixpod.families import Guidance
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Targets, Use
from pixpod.job import Delivery, ImageFormat, Quality, SafetyAction
from pixpod.methods import is_guided
from pixpod.outputs.storage import clean_prefix
from pixpod.stacks import PRESETS, Presets

PUBLIC_ONLY = Targets()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Choices that this deployment gives its callers: models, the qualities of each, and ways of
    delivery, the default first.

    `extras` are what models can be served with. `targets` are those that URLs of callers may
    reach. `lora_names` are the LoRAs that the deployment has. A deployment without secrets signs
    no webhooks, and sends none. `safety` is what happens to unsafe images of all jobs; with None,
    jobs choose whether they are flagged. `presets` are the stacks that jobs may name.
    """

    models: Catalog
    qualities: Mapping[str, tuple[Quality, ...]]
    deliveries: tuple[Delivery, ...]
    extras: Extras = dataclass_field(default_factory=dict)
    targets: Targets = PUBLIC_ONLY
    lora_names: frozenset[str] = frozenset()
    signs_webhooks: bool = False
    safety: SafetyAction | None = None
    presets: Presets = dataclass_field(default_factory=lambda: PRESETS)


def find_model(name: str | None, capabilities: Capabilities) -> ModelSpec | Problem | None:
    """Return the spec, the problem of the name, or None for a name that was malformed already."""
    if name is None:
        return None
    if name in capabilities.models:
        return capabilities.models[name]
    served = sorted(capabilities.models)
    accepted = f"one of {', '.join(served)}" if served else "nothing: no model is served"
    return wrong("model", name, accepted, did_you_mean(name, served))


def check_values(
    given: JobInput,
    spec: ModelSpec,
    capabilities: Capabilities,
    malformed: Collection[str] = (),
    *,
    has_s3_config: bool = False,
) -> Iterator[Problem]:
    """Yield the problems of `given`, in which fields named `malformed` are None.

    A rule about two fields is not applied if one is malformed: it may hold once that is fixed.
    """
    yield from _check_size(given, spec, malformed)
    yield from _check_counts(given, spec)
    yield from _check_scheduler(given, spec)
    yield from _check_guidance(given, spec, malformed)
    yield from check_texts(given, spec)
    yield from _check_quality(given, spec, capabilities)
    yield from check_images(given, spec, malformed)
    yield from check_loras(given, spec)
    yield from check_controls(
        given, spec, capabilities.extras, mode_of(given, spec), num_calls_of(given, spec)
    )
    yield from check_made(given, malformed)
    yield from check_refiner(given, spec, capabilities.extras, malformed)
    yield from check_image_prompt(given, spec, capabilities.extras, malformed)
    yield from check_upscale(given, spec, capabilities.extras, malformed)
    output = given.output or OutputInput()
    yield from _check_delivery(output, capabilities, malformed, has_s3_config=has_s3_config)
    yield from _check_output(output, malformed)
    yield from _check_idempotency(given, capabilities, malformed, has_s3_config=has_s3_config)
    yield from _check_webhook(given, capabilities, malformed)
    yield from _check_safety(given, capabilities)


def _check_size(given: JobInput, spec: ModelSpec, malformed: Collection[str]) -> Iterator[Problem]:
    limits, multiple = spec.limits, spec.family.size_multiple_px
    is_pair = not {"width", "height"} & set(malformed)
    for field, side in (("width", given.width), ("height", given.height)):
        if side is None:
            continue
        is_pair = is_pair and limits.min_side_px <= side <= limits.max_side_px
        if not limits.min_side_px <= side <= limits.max_side_px:
            accepted = f"{limits.min_side_px} to {limits.max_side_px} pixels for {spec.name}"
            yield wrong(field, side, accepted)
        elif side % multiple:
            below = side - side % multiple
            nearest = f"nearest are {below} and {below + multiple}"
            yield wrong(field, side, f"a multiple of {multiple} for {spec.name}", nearest)
    width, height = given.width or spec.defaults.width, given.height or spec.defaults.height
    if is_pair and width * height > limits.max_pixels:
        accepted = f"at most {limits.max_pixels} pixels in all for {spec.name}"
        field = "height" if given.width is None else "width"
        yield wrong(field, f"{width}x{height}", accepted, _nearest_size(width, height, spec))


def _nearest_size(width: int, height: int, spec: ModelSpec) -> str | None:
    """Return a size of about the same shape that the model serves; None if there is none."""
    limits, multiple = spec.limits, spec.family.size_multiple_px
    shrink = math.sqrt(limits.max_pixels / (width * height))
    sides = [int(side * shrink) // multiple * multiple for side in (width, height)]
    if min(sides) < limits.min_side_px:
        return None
    return f"nearest of this shape is {sides[0]}x{sides[1]}"


def _check_counts(given: JobInput, spec: ModelSpec) -> Iterator[Problem]:
    limits = spec.limits
    steps, num_images, seeds = given.num_inference_steps, given.num_images, given.seed
    if steps is not None and spec.step_counts and steps not in spec.step_counts:
        counts = " or ".join(map(str, spec.step_counts))
        yield wrong("num_inference_steps", steps, f"{counts}, for which {spec.name} is made")
    elif steps is not None and steps > limits.max_steps:
        accepted = f"at most {limits.max_steps} for {spec.name}"
        yield wrong("num_inference_steps", steps, accepted)
    if num_images is not None and num_images > limits.max_images:
        yield wrong("num_images", num_images, f"at most {limits.max_images} for {spec.name}")
    if seeds is None or len(seeds) == 1:
        return
    if num_images is not None and len(seeds) != num_images:
        yield wrong("seed", seeds, f"one seed, or {num_images} as num_images says")
    elif len(seeds) > limits.max_images:
        yield wrong("seed", seeds, f"at most {limits.max_images} seeds for {spec.name}")


def _check_guidance(
    given: JobInput, spec: ModelSpec, malformed: Collection[str]
) -> Iterator[Problem]:
    guidance, highest = given.guidance_scale, spec.limits.max_guidance
    if guidance is not None and not spec.takes_guidance:
        accepted = f"absent: {spec.name} is distilled to run without guidance"
        yield wrong("guidance_scale", guidance, accepted)
    elif guidance is not None and guidance > highest:
        yield wrong("guidance_scale", guidance, f"0 to {highest:g} for {spec.name}")
    yield from _GUIDANCE_RULES[spec.family.guidance](given, spec, malformed)


def _check_classifier_free(
    given: JobInput, spec: ModelSpec, malformed: Collection[str]
) -> Iterator[Problem]:
    if given.true_cfg_scale is not None:
        accepted = f"absent: {spec.family.title} models do not have it"
        yield wrong("true_cfg_scale", given.true_cfg_scale, accepted, "use guidance_scale")
    if not given.negative_prompt or "guidance_scale" in malformed:  # many clients send an empty one
        return
    guidance = given.guidance_scale
    effective = spec.defaults.guidance_scale if guidance is None else guidance
    if not spec.takes_guidance:
        accepted = f"absent: it has no effect on {spec.name}, which runs without guidance"
        yield wrong("negative_prompt", given.negative_prompt, accepted)
    elif not is_guided(effective):
        accepted = "absent: it has no effect unless guidance_scale is above 1"
        yield wrong("negative_prompt", given.negative_prompt, accepted)


def _check_true_cfg(
    given: JobInput, spec: ModelSpec, malformed: Collection[str]
) -> Iterator[Problem]:
    scale, highest = given.true_cfg_scale, spec.limits.max_guidance
    if scale is not None and scale > highest:
        yield wrong("true_cfg_scale", scale, f"1 to {highest:g}")
    is_on = is_guided(scale)
    if is_on and given.negative_prompt is None and "negative_prompt" not in malformed:
        hint = "give a negative_prompt, which may be empty"
        yield wrong("true_cfg_scale", scale, "1 or absent without a negative_prompt", hint)
    if given.negative_prompt and not is_on and "true_cfg_scale" not in malformed:
        title = spec.family.title
        accepted = f"absent: it has no effect on {title} unless true_cfg_scale is above 1"
        yield wrong("negative_prompt", given.negative_prompt, accepted)


def _check_embedded_only(
    given: JobInput, spec: ModelSpec, malformed: Collection[str]
) -> Iterator[Problem]:
    title = spec.family.title
    if given.true_cfg_scale is not None:
        accepted = f"absent: {title} models do not have it"
        yield wrong("true_cfg_scale", given.true_cfg_scale, accepted, "use guidance_scale")
    if given.negative_prompt:
        accepted = f"absent: it has no effect on {title} models"
        yield wrong("negative_prompt", given.negative_prompt, accepted)


_GUIDANCE_RULES: Mapping[
    Guidance, Callable[[JobInput, ModelSpec, Collection[str]], Iterator[Problem]]
] = {
    Guidance.CLASSIFIER_FREE: _check_classifier_free,
    Guidance.EMBEDDED: _check_true_cfg,
    Guidance.EMBEDDED_ONLY: _check_embedded_only,
}


def _check_scheduler(given: JobInput, spec: ModelSpec) -> Iterator[Problem]:
    schedulers = spec.scheduler_specs
    if given.scheduler is not None and given.scheduler not in schedulers:
        accepted = f"one of {', '.join(schedulers)}"
        hint = did_you_mean(given.scheduler, tuple(schedulers))
        yield wrong("scheduler", given.scheduler, accepted, hint)
        return
    name = given.scheduler or spec.defaults.scheduler
    steps = total_steps(given, spec)
    most = schedulers[name].max_steps
    if most is not None and steps > most:
        field = "scheduler" if given.num_inference_steps is None else "num_inference_steps"
        value = given.num_inference_steps or name
        hint = "those of the refiner count, too" if given.refiner else None
        yield wrong(field, value, f"at most {most} steps with the scheduler {name}", hint)


def _check_quality(
    given: JobInput, spec: ModelSpec, capabilities: Capabilities
) -> Iterator[Problem]:
    offered = capabilities.qualities[spec.name]
    if given.quality is None or given.quality in offered:
        return
    accepted = f"one of {', '.join(offered)} for {spec.name}, as this deployment is set up"
    yield wrong("quality", given.quality.value, accepted, _WHY_NOT.get(given.quality))


_WHY_NOT: Mapping[Quality, str] = {
    Quality.MAX: "its weights are in 8 bits here",
    Quality.TURBO: "only models that take many steps and can skip some have it",
}


def choose_safety(given: JobInput, capabilities: Capabilities) -> SafetyAction | None:
    """Return what happens to unsafe images of a job; None if its images are not classified."""
    return capabilities.safety or (SafetyAction.FLAG if given.safety else None)


def _check_safety(given: JobInput, capabilities: Capabilities) -> Iterator[Problem]:
    if given.safety is False and capabilities.safety is not None:
        accepted = f"true or absent: this deployment has PIXPOD_SAFETY={capabilities.safety}"
        yield wrong("safety", given.safety, accepted)


def choose_delivery(
    given: OutputInput, capabilities: Capabilities, *, has_s3_config: bool
) -> Delivery:
    """Return where the images of a job go: as it says, else into the places that it names."""
    if given.delivery is not None:
        return given.delivery
    if given.put_urls is not None:
        return Delivery.PUT
    return Delivery.S3_CONFIG if has_s3_config else capabilities.deliveries[0]


def _check_delivery(
    given: OutputInput,
    capabilities: Capabilities,
    malformed: Collection[str],
    *,
    has_s3_config: bool,
) -> Iterator[Problem]:
    delivery = given.delivery
    if delivery is None:
        return
    named = {Delivery.PUT: given.put_urls is not None, Delivery.S3_CONFIG: has_s3_config}
    if "output.put_urls" in malformed:
        named[Delivery.PUT] = True
    offered = (*capabilities.deliveries, *(each for each, is_named in named.items() if is_named))
    if delivery not in offered:
        where = {Delivery.PUT: "output.put_urls", Delivery.S3_CONFIG: "s3Config"}.get(delivery)
        hint = f"{delivery} needs {where}" if where else None
        accepted = f"one of {', '.join(offered)}, as this deployment is set up"
        yield wrong("output.delivery", delivery.value, accepted, hint)
    elif given.put_urls is not None and delivery is not Delivery.PUT:
        accepted = "absent unless output.delivery is put"
        yield wrong("output.put_urls", given.put_urls, accepted)


def _check_output(given: OutputInput, malformed: Collection[str]) -> Iterator[Problem]:
    is_png = given.format in (None, ImageFormat.PNG) and "output.format" not in malformed
    if given.quality is not None and is_png:
        hint = "set output.format to jpeg or webp"
        yield wrong("output.quality", given.quality, "absent: PNG is lossless", hint)
    if given.key_prefix is not None:
        try:
            clean_prefix(given.key_prefix)
        except ValueError as exc:
            yield wrong("output.key_prefix", given.key_prefix, str(exc).removeprefix("expected "))


def _check_idempotency(
    given: JobInput,
    capabilities: Capabilities,
    malformed: Collection[str],
    *,
    has_s3_config: bool,
) -> Iterator[Problem]:
    is_unknown = {"output", "output.delivery", "output.put_urls"} & set(malformed)
    if given.idempotency_key is None or is_unknown:
        return
    output = given.output or OutputInput()
    if choose_delivery(output, capabilities, has_s3_config=has_s3_config) is not Delivery.S3:
        accepted = "absent unless the images are delivered to the deployment's bucket"
        hint = "set output.delivery to s3" if Delivery.S3 in capabilities.deliveries else None
        yield wrong("idempotency_key", given.idempotency_key, accepted, hint)


def _check_webhook(
    given: JobInput, capabilities: Capabilities, malformed: Collection[str]
) -> Iterator[Problem]:
    if given.webhook_url is not None:
        try:
            capabilities.targets.parse(given.webhook_url, Use.WEBHOOK)
        except Refused as refused:
            yield refused.problem("webhook_url")
    elif given.webhook_events is not None and "webhook_url" not in malformed:
        accepted = "absent without a webhook_url"
        yield wrong("webhook_events", given.webhook_events, accepted)
