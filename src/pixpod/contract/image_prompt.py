"""Checks what a payload says about an image prompt, and chooses the adapter that reads it."""

from collections.abc import Collection, Iterator, Mapping

from pixpod.catalog import ModelSpec
from pixpod.contract.condition_inputs import IpAdapterInput
from pixpod.contract.job_input import JobInput
from pixpod.contract.problems import did_you_mean, wrong
from pixpod.errors import Problem
from pixpod.extras import Extras, ExtraSpec, extras_for, image_prompt_options
from pixpod.job import ImagePromptOptions
from pixpod.methods import is_guided

DEFAULT_SCALE = 1.0

_NO_NEGATIVE = "its pipelines take no negative text that is shorter than text and images together"


def adapters_of(spec: ModelSpec, extras: Extras) -> tuple[ExtraSpec, ...]:
    """Return the adapters that a model can be served with."""
    return tuple(extra for extra in extras_for(spec, extras) if extra.kind.is_image_prompt)


def prompt_images(given: JobInput) -> Mapping[str, str]:
    """Return the images of a prompt by their places in the payload."""
    prompt = given.ip_adapter
    if prompt is None:
        return {}
    alone = {"ip_adapter.image": prompt.image} if prompt.image else {}
    listed = {f"ip_adapter.images[{n}]": each for n, each in enumerate(prompt.images or ())}
    return {**alone, **listed}


def check_image_prompt(
    given: JobInput, spec: ModelSpec, extras: Extras, malformed: Collection[str]
) -> Iterator[Problem]:
    """Yield the problems of an image prompt, apart from the images that it names."""
    prompt = given.ip_adapter
    if prompt is None:
        return
    adapters = {extra.name: extra for extra in adapters_of(spec, extras)}
    if not adapters:
        accepted = f"absent: {spec.name} takes no image prompts here"
        yield wrong("ip_adapter", prompt.model_dump(exclude_none=True), accepted)
        return
    yield from _check_name(prompt, adapters, extras, malformed)
    yield from _check_images(prompt, spec, malformed)
    image_prompt = spec.family.image_prompt
    if image_prompt and image_prompt.extends_text and is_guided(given.true_cfg_scale):
        accepted = "1 or absent with ip_adapter"
        yield wrong("true_cfg_scale", given.true_cfg_scale, accepted, _NO_NEGATIVE)


def build_image_prompt(
    given: JobInput, spec: ModelSpec, extras: Extras
) -> ImagePromptOptions | None:
    """Return the image prompt of a payload without problems; None for one without effect."""
    prompt = given.ip_adapter
    if prompt is None or prompt.scale == 0:
        return None
    adapters = {extra.name: extra for extra in adapters_of(spec, extras)}
    adapter = adapters[prompt.name or next(iter(adapters))]
    scale = DEFAULT_SCALE if prompt.scale is None else prompt.scale
    return image_prompt_options(adapter, extras, len(prompt_images(given)), scale)


def _check_name(
    prompt: IpAdapterInput,
    adapters: Mapping[str, ExtraSpec],
    extras: Extras,
    malformed: Collection[str],
) -> Iterator[Problem]:
    if prompt.name in adapters:
        return
    if prompt.name is None and (len(adapters) == 1 or "ip_adapter.name" in malformed):
        return
    accepted = f"one of {', '.join(sorted(adapters))}"
    yield wrong("ip_adapter.name", prompt.name, accepted, _hint(prompt.name, adapters, extras))


def _check_images(
    prompt: IpAdapterInput, spec: ModelSpec, malformed: Collection[str]
) -> Iterator[Problem]:
    image_prompt = spec.family.image_prompt
    assert image_prompt is not None, "one of its adapters is offered"
    most = image_prompt.max_images
    if prompt.images is not None and len(prompt.images) > most:
        yield wrong("ip_adapter.images", prompt.images, f"at most {most} for {spec.name}")
    if {"ip_adapter.image", "ip_adapter.images"} & set(malformed):
        return
    if (prompt.image is None) == (prompt.images is None):
        accepted = "image or images in it" if prompt.image is None else "image or images, not both"
        yield wrong("ip_adapter", prompt.model_dump(exclude_none=True), accepted)


def _hint(name: str | None, adapters: Collection[str], extras: Extras) -> str | None:
    """Return the adapter that was meant, or what has this name."""
    if name is None:
        return None
    if name in extras and (family := extras[name].family):
        return f"{name} is a {extras[name].kind} for {family.title} models here"
    return did_you_mean(name, sorted(adapters))
