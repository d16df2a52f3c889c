"""Loads one component of a model: builds it without memory, binds its files, converts it.

Knows how diffusers and transformers build their modules, and nothing of pipelines.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers

from pixpod.catalog import ModelSpec
from pixpod.engine.loading.binding import (
    NamesDiffer,
    TensorFile,
    WithoutValues,
    assemble,
    bind,
    open_tensors,
    read_header,
)
from pixpod.engine.loading.device_memory import file_bytes
from pixpod.engine.model import Component, LoadedModel
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.engine.precision.quantization import convert
from pixpod.families import Precision
from pixpod.timeline import BootTimeline
from pixpod.weights.layout import MODEL_INDEX, Weights, component_folder, tensor_paths
from pixpod.weights.prefetch import Prefetch

log = logging.getLogger(__name__)

DTYPE = {
    Precision.FLOAT32: torch.float32,
    Precision.BFLOAT16: torch.bfloat16,
    Precision.FLOAT16: torch.float16,
    Precision.FLOAT8_DYNAMIC: torch.bfloat16,
    Precision.FLOAT8_WEIGHT_ONLY: torch.bfloat16,
    Precision.INT8_DYNAMIC: torch.bfloat16,
}
"""Number format in which components are loaded; 8 bits are made from bfloat16 afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadJob:
    """A model to be loaded: its spec, weights, formats and device."""

    spec: ModelSpec
    weights: Weights
    plan: QuantizationPlan
    device: torch.device
    prefetch: Prefetch
    timeline: BootTimeline


def build_skeleton(job: LoadJob, component: str) -> Component:
    """Build a component without memory, of the class that the model's index names."""
    index = json.loads((job.weights.folder / MODEL_INDEX).read_text(encoding="utf-8"))
    library, class_name = index[component]
    folder = component_folder(job.weights, component)
    return build_module(library, class_name, folder)


def wide_precision(model: LoadedModel) -> Precision:
    """Return the format of the model's components that are never in 8 bits."""
    dtype = model.components[model.spec.family.text_encoders[0]].dtype
    return next(precision for precision, each in DTYPE.items() if each is dtype)


def build_module(library: str, class_name: str, folder: Path, *, device: str = "meta") -> Component:
    """Build a module from its configuration: without memory, unless a device is named.

    Its weights have no values, but buffers that no file has do on a device.
    """
    module_class = getattr(
        {"diffusers": diffusers, "transformers": transformers}[library], class_name
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)  # the files themselves say so
    with torch.device(device), WithoutValues():
        if library == "diffusers":
            return module_class.from_config(config)
        return module_class(module_class.config_class.from_dict(config))


def load_component(job: LoadJob, name: str, skeleton: Component) -> Component:
    """Load one component onto the device, in the format that it runs in."""
    subject, device = f"{job.spec.name}/{name}", job.device
    folder = component_folder(job.weights, name)
    is_streamed = job.plan.is_streamed and name == job.spec.family.denoiser
    bind_device = torch.device("cpu") if is_streamed else device
    files = [read_tensors(path, bind_device, job.prefetch) for path in tensor_paths(folder)]
    with job.timeline.span("bind", subject):
        bound = bind_files(skeleton, files, folder, DTYPE[job.plan.precision], bind_device)
    del files  # they keep the bytes of the component that is converted now
    if precision := target_precision(job.spec, name, job.plan):
        with job.timeline.span("quantize", subject):
            convert(bound, precision, device, job.spec.family.quantization)
            if device.type == "cuda":
                torch.cuda.empty_cache()  # of the weights that it was made from
    if name == job.spec.family.vae:
        if device.type == "cpu":
            _decode_in_float32(bound)
        elif needs_upcast(job.spec, bound, job.plan):
            bound.float()
    return bound


def target_precision(spec: ModelSpec, component: str, plan: QuantizationPlan) -> Precision | None:
    """Return the format that a component's layers are converted to; None if they are not."""
    if component == spec.family.large_text_encoder:
        return plan.t5
    is_converted = plan.precision.is_8_bit or plan.is_dequantized
    return plan.precision if component == spec.family.denoiser and is_converted else None


def needs_upcast(spec: ModelSpec, vae: Component, plan: QuantizationPlan) -> bool:
    """Return whether the VAE overflows in the format that the model is loaded in."""
    is_half = plan.precision is Precision.FLOAT16
    return bool(spec.family.upcasts_vae and is_half and vae.config.force_upcast)


def _decode_in_float32(vae: Component) -> None:
    """Have a VAE decode in float32: a CPU without bfloat16 takes 25 times as long in bfloat16."""
    vae.decoder.float().register_forward_pre_hook(
        lambda decoder, arguments: (arguments[0].float(), *arguments[1:])
    )


def read_tensors(path: Path, device: torch.device, prefetch: Prefetch) -> TensorFile:
    """Return the tensors of a file that is being read. Raises WeightsUnreadable."""
    data = file_bytes(prefetch, path, device)
    header = read_header(prefetch.mapped(path).bytes, str(path))
    return open_tensors(data, header, str(path))


def bind_files(
    skeleton: Component,
    files: list[TensorFile],
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
) -> Component:
    """Bind a component's files on its device; use the library's loader for older names."""
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
