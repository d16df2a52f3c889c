"""Presets: names that stand for a stack of each served model, and for fields of jobs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixpod.catalog import ModelSpec
from pixpod.extras import ExtraSpec
from pixpod.stacks.stack import USUAL_RANK, Stack
from pixpod.stacks.usage import USAGES, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A name for what jobs use together.

    `stack_of` returns the stack of a model that is planned for, `fields_of` the fields that a job
    gets which names the preset. Both see the extras that fit the model. Any: JSON.
    """

    stack_of: Callable[[ModelSpec, Sequence[ExtraSpec]], Stack]
    fields_of: Callable[[ModelSpec, Sequence[ExtraSpec]], Mapping[str, Any]]


Presets = Mapping[str, Preset]


def _studio(spec: ModelSpec, fitting: Sequence[ExtraSpec]) -> Stack:
    """Return what most jobs of a studio use: a refiner, one ControlNet and some LoRAs."""
    return Stack(
        model=spec.name,
        extras=_largest(fitting, lambda usage: usage.in_studio),
        lora_rank=USUAL_RANK if spec.family.lora else 0,
    )


def _heavy(spec: ModelSpec, fitting: Sequence[ExtraSpec]) -> Stack:
    """Return the most that one request may use."""
    lora = spec.family.lora
    return Stack(
        model=spec.name,
        extras=_largest(fitting, lambda usage: usage.most(spec.family)),
        lora_rank=lora.ranks[-1] if lora else 0,
    )


def _largest(fitting: Sequence[ExtraSpec], count: Callable[[Usage], int]) -> tuple[str, ...]:
    """Return the largest extras of each kind, so that others fit in their place."""
    by_size = sorted(fitting, key=lambda extra: -extra.gib_16)
    found: list[ExtraSpec] = []
    for kind, usage in USAGES.items():
        of_kind = [extra for extra in by_size if extra.kind is kind]
        if usage and of_kind:
            groups = (_group(first, of_kind, usage)[: count(usage)] for first in of_kind)
            found += max(groups, key=lambda group: sum(extra.gib_16 for extra in group))
    return tuple(extra.name for extra in found)


def _group(first: ExtraSpec, extras: Sequence[ExtraSpec], usage: Usage) -> list[ExtraSpec]:
    """Return an extra and all that go with it, in their order."""
    group = [first]
    for extra in extras:
        if extra is not first and all(usage.go_together(extra, each) for each in group):
            group.append(extra)
    return [extra for extra in extras if extra in group]


def _built_in(stack_of: Callable[[ModelSpec, Sequence[ExtraSpec]], Stack]) -> Preset:
    """Return a preset whose jobs get what their stack has, as far as it needs no file of theirs."""

    def fields_of(spec: ModelSpec, fitting: Sequence[ExtraSpec]) -> Mapping[str, Any]:
        names = stack_of(spec, fitting).extras
        found: dict[str, Any] = {}
        for extra in fitting:
            usage = USAGES[extra.kind]
            if usage and usage.fields and extra.name in names:
                found |= usage.fields(spec, extra)
        return found

    return Preset(stack_of=stack_of, fields_of=fields_of)


def preset_of_fields(fields: Mapping[str, Any]) -> Preset:
    """Return a preset of a deployment, whose jobs get these fields. Any: JSON."""

    def stack_of(spec: ModelSpec, fitting: Sequence[ExtraSpec]) -> Stack:
        named = [
            extra.name
            for extra in fitting
            if (usage := USAGES[extra.kind]) and usage.is_named(fields, extra, fitting)
        ]
        has_loras = spec.family.lora is not None and fields.get("loras")
        rank = USUAL_RANK if has_loras else 0
        return Stack(model=spec.name, extras=tuple(named), lora_rank=rank)

    return Preset(stack_of=stack_of, fields_of=lambda spec, fitting: fields)


PRESETS: Presets = {"studio": _built_in(_studio), "heavy": _built_in(_heavy)}
"""The presets that every deployment has."""
