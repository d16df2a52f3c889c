"""A spec and its weights to a ready pipeline: build without memory, bind, quantise.

The only module that knows how diffusers and transformers load things.
"""

import gc
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from pixpod.catalog import Family, ModelSpec, Precision
from pixpod.engine.binding import (
    NamesDiffer,
    TensorFile,
    WithoutValues,
    assemble,
    bind,
    open_tensors,
    read_header,
)
from pixpod.engine.device_memory import file_bytes
from pixpod.engine.quantization import quantize_float8_dynamic
from pixpod.engine.weights import (
    MODEL_INDEX,
    PIPELINE_CLASS,
    Weights,
    component_folder,
    tensor_paths,
)
from pixpod.errors import DeviceUnavailable, ModelUnavailable, OutOfMemory, WeightsUnreadable
from pixpod.job import ModelIdentity
from pixpod.prefetch import Prefetch
from pixpod.timeline import BootTimeline

log = logging.getLogger(__name__)

Pipeline = Any
Tokenizer = Any
Component = Any
"""Any, because diffusers and transformers have no types."""

DTYPE = {
    Precision.FLOAT32: torch.float32,
    Precision.BFLOAT16: torch.bfloat16,
    Precision.FLOAT16: torch.float16,
    Precision.FLOAT8_DYNAMIC: torch.bfloat16,
}
"""What every component is loaded as; float8 is made of bfloat16 afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A pipeline on its device, ready to be called."""

    spec: ModelSpec
    identity: ModelIdentity
    device: torch.device
    pipe: Pipeline
    scheduler_config: Mapping[str, object]
    warnings: tuple[str, ...] = ()


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


def choose_precision(
    spec: ModelSpec, weights: Weights, device: torch.device, asked: Precision | None
) -> Precision:
    """The asked one, else float8 if that is how the weights are, else the model's default here.

    Raises DeviceUnavailable for a CUDA model on another device, ModelUnavailable for a
    precision that the model, its weights or the card cannot have.
    """
    if spec.requires_cuda and device.type != "cuda":
        raise DeviceUnavailable(f"{spec.name} runs on CUDA only, and this worker is on {device}")
    float8 = Precision.FLOAT8_DYNAMIC
    default = spec.precision.get(device.type, Precision.BFLOAT16)
    precision = asked or (float8 if weights.precision is float8 else default)
    if precision is float8 and spec.family is not Family.FLUX:
        raise ModelUnavailable(f"{spec.name} cannot run in {float8}: only FLUX models can")
    if weights.precision is float8 and precision is not float8:
        raise ModelUnavailable(
            f"{spec.name} is baked in {float8} and cannot run in {precision}: bake it so"
        )
    if precision is float8 and not has_float8(device):
        raise ModelUnavailable(
            f"{spec.name} in {float8} needs a card of compute capability 8.9 or higher (Ada, "
            f"Hopper, Blackwell), and this one is a {name_device(device)}: bake it in bfloat16 or "
            "choose other cards"
        )
    return precision


def has_float8(device: torch.device) -> bool:
    """Whether the device has FP8 arithmetic; a CPU computes it by a slow path."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


def load_model(
    spec: ModelSpec,
    weights: Weights,
    precision: Precision,
    device: torch.device,
    prefetch: Prefetch,
    timeline: BootTimeline,
) -> LoadedModel:
    """Build a model while its files are being read, and bind each component once it is there.

    Raises WeightsUnreadable if its files cannot be read, OutOfMemory if it does not fit.
    """
    try:
        with timeline.span("build", spec.name):
            skeletons = {
                component: _build_skeleton(spec, weights, component)
                for component in spec.family.components
            }
            pipe = _build_pipeline(spec, weights, skeletons)
        for component, module in skeletons.items():
            folder = component_folder(weights, component)
            files = [_read(path, device, prefetch) for path in tensor_paths(folder)]
            with timeline.span("bind", f"{spec.name}/{component}"):
                bound = _bind(module, files, folder, DTYPE[precision], device)
                pipe.register_modules(**{component: bound})
        if precision is Precision.FLOAT8_DYNAMIC and weights.precision is not precision:
            with timeline.span("quantize", spec.name):
                quantize_float8_dynamic(pipe.transformer, device)
    except torch.OutOfMemoryError as exc:
        raise OutOfMemory(f"{spec.name} in {precision} does not fit on {device}") from exc
    except (OSError, ValueError, KeyError, SafetensorError) as exc:
        raise WeightsUnreadable(f"{spec.name}: the files in {weights.folder} are broken") from exc
    pipe.set_progress_bar_config(disable=True)
    identity = ModelIdentity(
        name=spec.name,
        revision=weights.revision,
        precision=precision,
        weights=weights.source,
    )
    found = _warnings(spec, pipe, precision, device)
    return LoadedModel(
        spec=spec,
        identity=identity,
        device=device,
        pipe=pipe,
        scheduler_config=pipe.scheduler.config,
        warnings=found,
    )


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


def _warnings(
    spec: ModelSpec, pipe: Pipeline, precision: Precision, device: torch.device
) -> tuple[str, ...]:
    """What a caller should know of how this model runs."""
    found = []
    if precision is Precision.FLOAT8_DYNAMIC and device.type == "cuda":
        found.append("float8_dynamic runs eagerly, which is slower than bfloat16")
    needs_upcast = spec.family is Family.SDXL and pipe.vae.config.force_upcast
    if precision is Precision.FLOAT16 and needs_upcast:
        found.append(f"{spec.name} has no fp16-safe VAE: decoding runs in float32, which is slower")
    return tuple(found)
