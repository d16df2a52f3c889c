"""Identity of a component in memory. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass

from pixpod.catalog import EXTRAS_TABLE, ModelSpec
from pixpod.families import Precision


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ComponentKey:
    """Identity of a component in memory.

    `precision` distinguishes the variants of a denoiser and is empty for everything that they
    share. A component of several models is named after one of them.
    """

    model: str
    component: str
    precision: str = ""

    @property
    def is_extra(self) -> bool:
        return self.model == EXTRAS_TABLE

    def __str__(self) -> str:
        name = f"{self.model}/{self.component}"
        return f"{name} in {self.precision}" if self.precision else name


def own_keys(spec: ModelSpec, precision: Precision) -> Mapping[str, ComponentKey]:
    """Return the keys by component of a model that shares none."""
    return {name: component_key(spec, name, precision) for name in spec.family.component_names}


def extra_key(extra: str, precision: Precision) -> ComponentKey:
    """Return the key of an extra in a 16-bit or wider format, which models have in common."""
    return ComponentKey(model=EXTRAS_TABLE, component=extra, precision=precision.value)


def component_key(spec: ModelSpec, component: str, precision: Precision) -> ComponentKey:
    is_denoiser = component == spec.family.denoiser
    return ComponentKey(
        model=spec.name, component=component, precision=precision.value if is_denoiser else ""
    )
