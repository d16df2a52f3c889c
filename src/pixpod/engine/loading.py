"""A spec and its weights to a ready pipeline: build without memory, bind, convert.

The only module that knows how diffusers and transformers load things.
"""

import gc
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from pixpod.catalog import Family, ModelSpec, Precision
from pixpod.engine.attention import NATIVE, set_attention
from pixpod.engine.binding import (
    NamesDiffer,
    TensorFile,
    WithoutValues,
    assemble,
    bind,
    open_tensors,
    read_header,
)
from pixpod.engine.cards import find_card
from pixpod.engine.device_memory import file_bytes
from pixpod.engine.precision import Choice, Place, limit_bytes
from pixpod.engine.quantization import computes_float8, convert
from pixpod.engine.weights import (
    MODEL_INDEX,
    PIPELINE_CLASS,
    Weights,
    component_folder,
    tensor_paths,
)
from pixpod.errors import DeviceUnavailable, OutOfMemory, WeightsUnreadable
from pixpod.job import ModelIdentity
from pixpod.prefetch import Prefetch
from pixpod.timeline import BootTimeline

if TYPE_CHECKING:
    from pixpod.engine.compiled_calls import Compilation

log = logging.getLogger(__name__)

Pipeline = Any
Tokenizer = Any
Component = Any
"""Any, because diffusers and transformers have no types."""

Admit = Callable[[str, Callable[[], Component]], Component]
"""Makes room on the device for a component, by its name, and loads it."""

DTYPE = {
    Precision.FLOAT32: torch.float32,
    Precision.BFLOAT16: torch.bfloat16,
    Precision.FLOAT16: torch.float16,
    Precision.FLOAT8_DYNAMIC: torch.bfloat16,
    Precision.FLOAT8_WEIGHT_ONLY: torch.bfloat16,
    Precision.INT8_DYNAMIC: torch.bfloat16,
}
"""What every component is loaded as; 8 bits are made of bfloat16 afterwards."""


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
            skeletons = {name: _build_skeleton(spec, weights, name) for name in names}
            if sibling:
                pipe = copy(sibling.pipe)
                pipe.register_modules(**skeletons)
            else:
                pipe = _build_pipeline(spec, weights, skeletons)
        for name, skeleton in skeletons.items():
            load = partial(
                _load_component, spec, weights, choice, name, skeleton, device, prefetch, timeline
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
        scheduler_config=pipe.scheduler.config,
        cautions=cautions,
    )


def _load_component(
    spec: ModelSpec,
    weights: Weights,
    choice: Choice,
    name: str,
    skeleton: Component,
    device: torch.device,
    prefetch: Prefetch,
    timeline: BootTimeline,
) -> Component:
    """One component on the device, in what it runs in."""
    folder = component_folder(weights, name)
    is_streamed = choice.is_streamed and name == spec.family.denoiser
    where = torch.device("cpu") if is_streamed else device
    files = [_read(path, where, prefetch) for path in tensor_paths(folder)]
    with timeline.span("bind", f"{spec.name}/{name}"):
        bound = _bind(skeleton, files, folder, DTYPE[choice.precision], where)
    del files  # they hold the bytes of what is converted now
    if precision := _made_into(spec, name, choice):
        with timeline.span("quantize", f"{spec.name}/{name}"):
            convert(bound, precision, device)
            if device.type == "cuda":
                torch.cuda.empty_cache()  # of what it was made of
    return bound


def _made_into(spec: ModelSpec, component: str, choice: Choice) -> Precision | None:
    """What a component's layers are made into; None for those that run as they are stored."""
    if component == "text_encoder_2":
        return choice.t5
    is_made = choice.precision.is_8_bit or choice.is_dequantized
    return choice.precision if component == spec.family.denoiser and is_made else None


def _build_skeleton(spec: ModelSpec, weights: Weights, component: str) -> Component:
    """A component without memory, of the class that the model's index names."""
    index = json.loads((weights.folder / MODEL_INDEX).read_text(encoding="utf-8"))
    library, class_name = index[component]
    module_class = getattr(
        {"diffusers": diffusers, "transformers": transformers}[library], class_name
    )
    folder = component_folder(weights, component)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)  # the files tell by themselves
    with torch.device("meta"), WithoutValues():
        if library == "diffusers":
            return module_class.from_config(config)
        return module_class(module_class.config_class.from_dict(config))


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


def _read(path: Path, device: torch.device, prefetch: Prefetch) -> TensorFile:
    data = file_bytes(prefetch, path, device)
    header = read_header(prefetch.mapped(path).bytes, str(path))
    return open_tensors(data, header, str(path))


def _bind(
    skeleton: Component,
    files: list[TensorFile],
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
) -> Component:
    """The component on its device; by the library's own loader if its names are older ones."""
    tensors = {name: tensor for file in files for name, tensor in assemble(file).items()}
    try:
        bind(skeleton, tensors, dtype)
    except NamesDiffer as exc:
        log.warning("slow load", extra={"folder": str(folder), "reason": str(exc)})
        variant = "fp16" if ".fp16" in tensor_paths(folder)[0].name else None
        slow = type(skeleton).from_pretrained(
            folder, dtype=dtype, variant=variant, local_files_only=True
        )
        return slow.requires_grad_(False).eval().to(device)
    return skeleton


def _cautions(spec: ModelSpec, pipe: Pipeline, choice: Choice) -> tuple[str, ...]:
    """What a caller should know of how this model runs."""
    needs_upcast = spec.family is Family.SDXL and pipe.vae.config.force_upcast
    if choice.precision is not Precision.FLOAT16 or not needs_upcast:
        return choice.warnings
    slow = f"{spec.name} has no fp16-safe VAE: decoding runs in float32, which is slower"
    return (*choice.warnings, slow)
