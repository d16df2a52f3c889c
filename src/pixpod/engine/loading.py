"""A spec and its weights to a ready pipeline: build, quantise, place.

The only module that knows how diffusers and transformers load things.
"""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors import SafetensorError

from pixpod.catalog import Family, ModelSpec, Precision
from pixpod.engine.quantization import quantize_float8_dynamic
from pixpod.engine.weights import PIPELINE_CLASS, Weights
from pixpod.errors import DeviceUnavailable, ModelUnavailable, OutOfMemory, WeightsUnreadable
from pixpod.job import ModelIdentity

Pipeline = Any
Tokenizer = Any
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


def name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def free_memory() -> None:
    """Give back what dropped models held: their modules refer to each other in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def choose_precision(spec: ModelSpec, device: torch.device, asked: Precision | None) -> Precision:
    """The asked one, else the model's default for this kind of device.

    Raises DeviceUnavailable for a CUDA model on another device, ModelUnavailable for a
    precision that the model cannot have.
    """
    if spec.requires_cuda and device.type != "cuda":
        raise DeviceUnavailable(f"{spec.name} runs on CUDA only, and this worker is on {device}")
    precision = asked or spec.precision.get(device.type, Precision.BFLOAT16)
    if precision is Precision.FLOAT8_DYNAMIC and spec.family is not Family.FLUX:
        raise ModelUnavailable(f"{spec.name} cannot run in float8_dynamic: only FLUX models can")
    return precision


def load_model(
    spec: ModelSpec, weights: Weights, precision: Precision, device: torch.device
) -> LoadedModel:
    """Read, quantise and place a model.

    Raises WeightsUnreadable if its files cannot be read, OutOfMemory if it does not fit.
    """
    try:
        pipe = _read_pipeline(spec, weights, precision)
        if precision is Precision.FLOAT8_DYNAMIC:
            pipe.transformer.to(device)
            quantize_float8_dynamic(pipe.transformer, device)
        pipe.to(device)
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


def _read_pipeline(spec: ModelSpec, weights: Weights, precision: Precision) -> DiffusionPipeline:
    pipeline_class = getattr(diffusers, PIPELINE_CLASS[spec.family])
    dtype = DTYPE[precision]
    replaced: dict[str, object] = {}
    if weights.vae:
        replaced["vae"] = AutoencoderKL.from_pretrained(weights.vae, dtype=dtype)
    if spec.family is Family.SD15:
        replaced |= {"safety_checker": None, "requires_safety_checker": False}
    if spec.family is Family.SDXL:
        replaced["add_watermarker"] = False
    return pipeline_class.from_pretrained(
        Path(weights.folder), dtype=dtype, local_files_only=True, **replaced
    )


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
