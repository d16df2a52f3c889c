"""One component of a model: built without memory, bound to its files, made into what it runs in.

Knows how diffusers and transformers build their modules, and nothing of pipelines.
"""

import json
import logging
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from pixpod.catalog import ModelSpec, Precision
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
from pixpod.engine.precision.precision import Choice
from pixpod.engine.precision.quantization import convert
from pixpod.timeline import BootTimeline
from pixpod.weights.layout import MODEL_INDEX, Weights, component_folder, tensor_paths
from pixpod.weights.prefetch import Prefetch

log = logging.getLogger(__name__)

Component = Any
"""Any, because diffusers and transformers have no types."""

DTYPE = {
    Precision.FLOAT32: torch.float32,
    Precision.BFLOAT16: torch.bfloat16,
    Precision.FLOAT16: torch.float16,
    Precision.FLOAT8_DYNAMIC: torch.bfloat16,
    Precision.FLOAT8_WEIGHT_ONLY: torch.bfloat16,
    Precision.INT8_DYNAMIC: torch.bfloat16,
}
"""What every component is loaded as; 8 bits are made of bfloat16 afterwards."""


def build_skeleton(spec: ModelSpec, weights: Weights, component: str) -> Component:
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


def load_component(
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
    if precision := made_into(spec, name, choice):
        with timeline.span("quantize", f"{spec.name}/{name}"):
            convert(bound, precision, device)
            if device.type == "cuda":
                torch.cuda.empty_cache()  # of what it was made of
    if name == "vae" and device.type == "cpu":
        _decode_in_float32(bound)
    return bound


def made_into(spec: ModelSpec, component: str, choice: Choice) -> Precision | None:
    """What a component's layers are made into; None for those that run as they are stored."""
    if component == "text_encoder_2":
        return choice.t5
    is_made = choice.precision.is_8_bit or choice.is_dequantized
    return choice.precision if component == spec.family.denoiser and is_made else None


def _decode_in_float32(vae: Component) -> None:
    """Convolutions in bfloat16 take 25 times as long on a CPU without instructions for it."""
    vae.decoder.float().register_forward_pre_hook(
        lambda decoder, arguments: (arguments[0].float(), *arguments[1:])
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
