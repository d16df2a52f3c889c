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
    names: list[str] = []
    for kind, usage in USAGES.items():
        of_kind = [extra.name for extra in by_size if extra.kind is kind]
        names += of_kind[: count(usage)] if usage else []
    return tuple(names)


PRESETS: Mapping[str, Callable[[ModelSpec, Sequence[ExtraSpec]], Stack]] = {
    "studio": _studio,
    "heavy": _heavy,
}
