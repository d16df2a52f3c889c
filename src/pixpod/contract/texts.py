"""Rules for texts and the ways to read them."""

from collections.abc import Iterator

from pixpod.catalog import ModelSpec
from pixpod.contract.job_input import JobInput
from pixpod.contract.problems import wrong
from pixpod.errors import Problem
from pixpod.job import LongPrompt

MAX_WEIGHTED_CHARACTERS = 2000
"""Parsing a text of this length takes 0.2 s. Four chunks are 300 tokens, about 1300 letters."""


def check_texts(given: JobInput, spec: ModelSpec) -> Iterator[Problem]:
    """Yield the problems that can be seen without a tokenizer."""
    family = spec.family
    length, longest = given.max_sequence_length, spec.limits.max_sequence_length
    if length is not None and longest is None:
        accepted = f"absent: {family.title} models do not have it"
        yield wrong("max_sequence_length", length, accepted)
    elif length is not None and longest is not None and length > longest:
        yield wrong("max_sequence_length", length, f"at most {longest} for {spec.name}")
    if given.prompt_2 is not None and "prompt_2" not in family.prompt_fields:
        accepted = f"absent: {family.title} models do not have it"
        yield wrong("prompt_2", given.prompt_2, accepted)
    yield from _check_clip(given, spec)
    if given.prompt_weights:
        yield from _check_weighted(given)


def _check_clip(given: JobInput, spec: ModelSpec) -> Iterator[Problem]:
    family, clip = spec.family, spec.family.clip_text
    if clip is None:
        accepted = f"absent: {family.title} models do not have it"
        if given.prompt_weights:
            yield wrong("prompt_weights", given.prompt_weights, accepted)
        if given.clip_skip is not None:
            yield wrong("clip_skip", given.clip_skip, accepted)
        if given.on_long_prompt is LongPrompt.CHUNK:
            accepted = f"refuse or truncate: {family.title} models read no chunks"
            yield wrong("on_long_prompt", given.on_long_prompt, accepted)
    elif given.clip_skip is not None and given.clip_skip > clip.max_clip_skip:
        yield wrong("clip_skip", given.clip_skip, f"at most {clip.max_clip_skip} for {spec.name}")


def _check_weighted(given: JobInput) -> Iterator[Problem]:
    for field in ("prompt", "prompt_2", "negative_prompt"):
        text = getattr(given, field)
        if text is not None and len(text) > MAX_WEIGHTED_CHARACTERS:
            accepted = f"at most {MAX_WEIGHTED_CHARACTERS} characters with prompt_weights"
            yield wrong(field, f"{len(text)} characters", accepted)
