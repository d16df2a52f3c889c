"""A spec and its weights to a ready pipeline on a device."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from pixpod.catalog import Family, ModelSpec, Precision
from pixpod.engine.loading.components import Component, build_skeleton, load_component
from pixpod.engine.memory.needs import Part, own_parts
from pixpod.engine.precision.attention import NATIVE, set_attention
from pixpod.engine.precision.precision import Choice
from pixpod.errors import OutOfMemory, WeightsUnreadable
from pixpod.job import ModelIdentity
from pixpod.timeline import BootTimeline
from pixpod.weights.layout import PIPELINE_CLASS, Weights
from pixpod.weights.prefetch import Prefetch

if TYPE_CHECKING:
    from pixpod.engine.compilation.calls import Compilation

Pipeline = Any
Tokenizer = Any
"""Any, because diffusers and transformers have no types."""

Admit = Callable[[str, Callable[[], Component]], Component]
"""Makes room on the device for a component, by its name, and loads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A pipeline on its device, ready to be called. `parts` are its components' names in memory."""

    spec: ModelSpec
    identity: ModelIdentity
    device: torch.device
    pipe: Pipeline
    parts: Mapping[str, Part]
    scheduler_config: Mapping[str, object]
    cautions: tuple[str, ...] = ()
    compilation: "Compilation | None" = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """For each reply. What is compiled at the first image may fail there."""
        return (*self.cautions, *(self.compilation.warnings if self.compilation else ()))

    @property
    def has_lost_compiler(self) -> bool:
        """Whether its denoiser was to be compiled, and could not be."""
        found = self.compilation
        return bool(
            found and found.reasons and found.ways.get(self.spec.family.denoiser) == "eager"
        )


def import_pipelines(families: Iterable[Family]) -> None:
    """Import what these families need, which diffusers does when a class is first asked for."""
    for family in families:
        getattr(diffusers, PIPELINE_CLASS[family])


def silence_libraries() -> None:
    """Keep diffusers and transformers quiet: their warnings quote the prompts they cut."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def load_model(
    spec: ModelSpec,
    weights: Weights,
    choice: Choice,
    device: torch.device,
    prefetch: Prefetch,
    timeline: BootTimeline,
    *,
    attention: str = NATIVE,
    parts: Mapping[str, Part] | None = None,
    present: Mapping[str, Component] = MappingProxyType({}),
    admit: Admit = lambda name, load: load(),
) -> LoadedModel:
    """Build a model while its files are being read, and bind each component once it is there.

    `attention` is the denoiser's backend. `parts` names its components, None if it shares none.
    `present` components are there already, for another
    model or variant. `admit` makes room for a component by name, and loads it; or gives what
    has come meanwhile.

    Raises WeightsUnreadable if its files cannot be read, OutOfMemory if it does not fit.
    """
    names = [name for name in spec.family.components if name not in present]
    try:
        with timeline.span("build", spec.name):
            skeletons = {name: build_skeleton(spec, weights, name) for name in names}
            pipe = _build_pipeline(spec, weights, {**present, **skeletons})
        for name, skeleton in skeletons.items():
            load = partial(
                load_component, spec, weights, choice, name, skeleton, device, prefetch, timeline
            )
            pipe.register_modules(**{name: admit(name, load)})
        cautions = _cautions(spec, pipe, choice)
        if spec.family is Family.FLUX:
            cautions += set_attention(pipe.transformer, attention, device)
    except torch.OutOfMemoryError as exc:
        raise OutOfMemory(f"{spec.name} in {choice.label} does not fit on {device}") from exc
    except (OSError, ValueError, KeyError, SafetensorError) as exc:
        raise WeightsUnreadable(f"{spec.name}: the files in {weights.folder} are broken") from exc
    pipe.set_progress_bar_config(disable=True)
    identity = ModelIdentity(
        name=spec.name,
        revision=weights.revision,
        precision=choice.label,
        weights=weights.source,
    )
    return LoadedModel(
        spec=spec,
        identity=identity,
        device=device,
        pipe=pipe,
        parts=parts or own_parts(spec, choice.precision),
        scheduler_config=pipe.scheduler.config,
        cautions=cautions,
    )


def _build_pipeline(
    spec: ModelSpec, weights: Weights, modules: Mapping[str, Component]
) -> DiffusionPipeline:
    """The pipeline around these modules, with its scheduler and its tokenizers."""
    left_out: dict[str, object] = {"feature_extractor": None}
    if spec.family is Family.SD15:
        left_out |= {"safety_checker": None, "requires_safety_checker": False}
    if spec.family is Family.SDXL:
        left_out |= {"add_watermarker": False}
    pipeline_class = getattr(diffusers, PIPELINE_CLASS[spec.family])
    return pipeline_class.from_pretrained(
        weights.folder, local_files_only=True, **modules, **left_out
    )


def _cautions(spec: ModelSpec, pipe: Pipeline, choice: Choice) -> tuple[str, ...]:
    """What a caller should know of how this model runs."""
    needs_upcast = spec.family is Family.SDXL and pipe.vae.config.force_upcast
    if choice.precision is not Precision.FLOAT16 or not needs_upcast:
        return choice.warnings
    slow = f"{spec.name} has no fp16-safe VAE: decoding runs in float32, which is slower"
    return (*choice.warnings, slow)
