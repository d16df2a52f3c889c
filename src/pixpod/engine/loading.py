"""A spec and its weights to a ready pipeline on a device, and what is to be known of the device."""

import gc
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from pixpod.catalog import Family, ModelSpec, Precision
from pixpod.engine.attention import NATIVE, set_attention
from pixpod.engine.cards import find_card
from pixpod.engine.components import Component, build_skeleton, load_component
from pixpod.engine.precision import Choice, Place, limit_bytes
from pixpod.engine.quantization import computes_float8
from pixpod.engine.weights import PIPELINE_CLASS, Weights
from pixpod.errors import DeviceUnavailable, OutOfMemory, WeightsUnreadable
from pixpod.job import ModelIdentity
from pixpod.prefetch import Prefetch
from pixpod.timeline import BootTimeline

if TYPE_CHECKING:
    from pixpod.engine.compiled_calls import Compilation

Pipeline = Any
Tokenizer = Any
"""Any, because diffusers and transformers have no types."""

Admit = Callable[[str, Callable[[], Component]], Component]
"""Makes room on the device for a component, by its name, and loads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A pipeline on its device, ready to be called."""

    spec: ModelSpec
    identity: ModelIdentity
    device: torch.device
    pipe: Pipeline
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


def find_device(asked: str) -> torch.device:
    """The device for `auto`, `cuda` or `cpu`. Raises DeviceUnavailable for a missing card."""
    has_cuda = torch.cuda.is_available()
    if asked == "cuda" and not has_cuda:
        raise DeviceUnavailable("PIXPOD_DEVICE=cuda, but this host has no CUDA device that works")
    return torch.device("cuda" if has_cuda and asked != "cpu" else "cpu")


def prepare_device(asked: str) -> torch.device:
    """As `find_device`, and the device has computed something. Takes most of a second on a card."""
    device = find_device(asked)
    try:
        torch.ones(1, device=device).add(1).item()
    except RuntimeError as exc:  # what torch raises for a broken driver or a card in use
        raise DeviceUnavailable(f"{device} does not compute: {type(exc).__name__}") from exc
    return device


def name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def free_memory() -> None:
    """Give back what dropped models held: their modules refer to each other in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reserved_bytes() -> int | None:
    """What torch holds of the card's memory, in use or kept for the next; None without CUDA."""
    return torch.cuda.memory_reserved() if torch.cuda.is_available() else None


def find_place(device: torch.device, memory_limit_gib: float | None = None) -> Place:
    """What is known of the device before anything is loaded onto it.

    `memory_limit_gib` is what may be used of a card, None for all that it has. Raises
    DeviceUnavailable for a card that is too old.
    """
    if device.type != "cuda":
        return Place()
    card = find_card(torch.cuda.get_device_capability(device))
    has_bytes = torch.cuda.get_device_properties(device).total_memory
    return Place(
        card=card,
        memory_bytes=limit_bytes(has_bytes, memory_limit_gib),
        has_float8=card.has_float8(torch.__version__) and computes_float8(device),
    )


def limit_memory(device: torch.device, place: Place) -> None:
    """Have torch keep within what may be used of a card, as if there were no more."""
    if device.type == "cuda" and place.memory_bytes is not None:
        has_bytes = torch.cuda.get_device_properties(device).total_memory
        if place.memory_bytes < has_bytes:
            torch.cuda.set_per_process_memory_fraction(place.memory_bytes / has_bytes, device)


def load_model(
    spec: ModelSpec,
    weights: Weights,
    choice: Choice,
    device: torch.device,
    prefetch: Prefetch,
    timeline: BootTimeline,
    *,
    attention: str = NATIVE,
    sibling: LoadedModel | None = None,
    admit: Admit = lambda name, load: load(),
) -> LoadedModel:
    """Build a model while its files are being read, and bind each component once it is there.

    `attention` is the denoiser's backend. `sibling` is the same model in another precision: all
    but the denoiser is shared with it. `admit` makes room for a component by name, and loads it.

    Raises WeightsUnreadable if its files cannot be read, OutOfMemory if it does not fit.
    """
    names = (spec.family.denoiser,) if sibling else spec.family.components
    try:
        with timeline.span("build", spec.name):
            skeletons = {name: build_skeleton(spec, weights, name) for name in names}
            if sibling:
                pipe = copy(sibling.pipe)
                pipe.register_modules(**skeletons)
            else:
                pipe = _build_pipeline(spec, weights, skeletons)
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
        scheduler_config=sibling.scheduler_config if sibling else pipe.scheduler.config,
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
