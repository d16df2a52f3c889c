"""Presets: names that stand for a stack of each served model."""

from collections.abc import Callable, Mapping, Sequence

from pixpod.catalog import ModelSpec
from pixpod.extras import ExtraSpec
from pixpod.stacks.stack import USUAL_RANK, Stack
from pixpod.stacks.usage import USAGES, Usage


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


PRESETS: Mapping[str, Callable[[ModelSpec, Sequence[ExtraSpec]], Stack]] = {
    "studio": _studio,
    "heavy": _heavy,
}
