"""A model that is loaded on its device, and the pipelines around its components."""

import inspect
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import diffusers
import torch
from torch import nn

from pixpod.catalog import ModelSpec
from pixpod.engine.component_key import ComponentKey
from pixpod.errors import InternalError
from pixpod.job import ModelIdentity

log = logging.getLogger(__name__)

Pipeline = Any
Tokenizer = Any
Component = Any
Scheduler = Any
"""Any, because diffusers and transformers have no types."""


class ComponentNotOnloaded(InternalError, AttributeError):
    """A stage used a component that its plan does not name.

    An AttributeError as well, so that diffusers may probe for methods with `hasattr`.
    """


class OffloadedComponent:
    """Stands in for a component of a pipeline that the current stage does not use.

    Pipelines may read its config and number format. Anything else raises ComponentNotOnloaded.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.config = module.config
        self.dtype = module.dtype
        self._name = name

    def __call__(self, *args: object, **kwargs: object) -> None:
        self._refuse()

    def __getattr__(self, attribute: str) -> None:
        self._refuse()

    def _refuse(self) -> None:
        raise ComponentNotOnloaded(f"{self._name} is used by a stage whose plan does not name it")


@dataclass(slots=True, kw_only=True)
class Compilation:
    """Modes of one model's regions: `modes` has `package`, `jit` or `eager` by component, and
    `warnings` are messages for callers.

    Changes while the model is used: code that is compiled at the first image may fail there.
    """

    model: str
    modes: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def run_eagerly(self, component: str, reason: str) -> None:
        self.modes[component] = "eager"
        self.warnings.append(f"{component} runs eagerly, which is slower: {reason}")
        log.warning(
            "not compiled", extra={"model": self.model, "component": component, "reason": reason}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedExtra:
    """An extra on a device, such as a ControlNet, and its name in memory."""

    module: Component
    key: ComponentKey


_PipelineKey = tuple[str, frozenset[str], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model's components on a device.

    `keys` are the names of the components in memory. `tokenizers` are by their names in
    pipelines. `pipeline_options` are further arguments of the pipelines' constructors. `extras`
    grows as requests need them.
    """

    spec: ModelSpec
    identity: ModelIdentity
    device: torch.device
    components: Mapping[str, Component]
    keys: Mapping[str, ComponentKey]
    tokenizers: Mapping[str, Tokenizer]
    scheduler_config: Mapping[str, object]
    pipeline_options: Mapping[str, object]
    cautions: tuple[str, ...] = ()
    compilation: Compilation | None = None
    extras: dict[str, LoadedExtra] = field(default_factory=dict)
    _pipelines: dict[_PipelineKey, Pipeline] = field(default_factory=dict, repr=False)

    @property
    def denoiser(self) -> Component:
        return self.components[self.spec.family.denoiser]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Messages for each reply. They may grow with the first image."""
        return (*self.cautions, *(self.compilation.warnings if self.compilation else ()))

    def scheduler(self, name: str) -> Scheduler:
        """Build a scheduler of the family by its name in requests."""
        scheduler = self.spec.family.schedulers[name]
        scheduler_class = getattr(diffusers, scheduler.class_name)
        return scheduler_class.from_config(self.scheduler_config, **scheduler.options)

    def module_of(self, name: str) -> Component:
        """Return a component or an extra by its name. Raises KeyError."""
        return self.components[name] if name in self.components else self.extras[name].module

    def key_of(self, name: str) -> ComponentKey:
        """Return the key of a component or an extra. Raises KeyError."""
        return self.keys[name] if name in self.keys else self.extras[name].key

    def pipeline(
        self, class_name: str, components: Collection[str], nets: tuple[str, ...] = ()
    ) -> Pipeline:
        """Return a pipeline that can use these components and no others.

        `nets` are the ControlNets of a class that takes some, in the order of their images. It is
        built by its constructor from the components themselves: diffusers' own
        `from_pipe` casts them all to one number format (diffusers#12754). Built once for each
        class, set of components and nets; not for several threads at once.
        """
        key = (class_name, frozenset(components), nets)
        if key not in self._pipelines:
            self._pipelines[key] = self._build_pipeline(*key)
        return self._pipelines[key]

    def pipeline_with(
        self,
        class_name: str,
        components: Collection[str],
        nets: tuple[str, ...],
        replaced: Mapping[str, Component],
    ) -> Pipeline:
        """Return a new pipeline with some other components in the place of the model's own."""
        return self.with_components({**self.components, **replaced})._build_pipeline(
            class_name, frozenset((*components, *replaced)), nets
        )

    def with_components(self, components: Mapping[str, Component]) -> "LoadedModel":
        """Return the same model around other components, with pipelines of its own."""
        return replace(self, components=components, _pipelines={})

    def full_pipeline(self) -> Pipeline:
        """Return the text-to-image pipeline with all components, for tools and tests."""
        family = self.spec.family
        return self.pipeline(family.default_pipeline, family.component_names)

    def _build_pipeline(
        self, class_name: str, usable: frozenset[str], nets: tuple[str, ...]
    ) -> Pipeline:
        pipeline_class = getattr(diffusers, class_name)
        modules = {
            name: module if name in usable else OffloadedComponent(name, module)
            for name, module in self.components.items()
        }
        if nets:
            modules["controlnet"] = (
                [self.extras[name].module for name in nets]
                if usable.issuperset(nets)
                else OffloadedComponent("controlnet", self.extras[nets[0]].module)
            )
        given = {
            **modules,
            **self.tokenizers,
            **self.pipeline_options,
            "scheduler": self.scheduler(self.spec.defaults.scheduler),
        }
        parameters = list(inspect.signature(pipeline_class.__init__).parameters.values())[1:]
        arguments = {
            each.name: given.get(each.name)
            for each in parameters
            if each.name in given or each.default is inspect.Parameter.empty
        }
        pipe = pipeline_class(**arguments)
        pipe.set_progress_bar_config(disable=True)
        return pipe
