"""Loads extras: nets, image encoders and adapters, each kind in its published layout."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from safetensors import SafetensorError
from torch import nn

from pixpod.engine.adapters.image_attention import ImageAttention, IpAdapter
from pixpod.engine.loading.binding import NamesDiffer, WithoutValues, bind
from pixpod.engine.loading.components import DTYPE, bind_files, build_module, read_tensors
from pixpod.engine.model import Component
from pixpod.errors import ModelUnavailable, OutOfMemory, WeightsUnreadable
from pixpod.extras import ExtraKind, ExtraSpec
from pixpod.families import ComponentSpec, Precision
from pixpod.timeline import BootTimeline
from pixpod.weights.layout import Weights, tensor_paths
from pixpod.weights.prefetch import Prefetch

HEAD_CHANNELS = 64
"""Channels of one head in the resampler of an IP-Adapter Plus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraLoadJob:
    """An extra to be loaded: its spec, weights, format (of 16 bits or wider) and device."""

    extra: ExtraSpec
    weights: Weights
    precision: Precision
    device: torch.device
    prefetch: Prefetch
    timeline: BootTimeline


class Redux(nn.Module):
    """FLUX Redux: an image encoder, and what makes tokens of what it sees."""

    def __init__(self, image_encoder: Component, image_embedder: Component) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.image_embedder = image_embedder


def load_extra(job: ExtraLoadJob) -> Component:
    """Load an extra onto the device.

    Raises ModelUnavailable for an adapter of another kind, WeightsUnreadable if its files cannot be
    read, OutOfMemory if it does not fit.
    """
    name, device, load = job.extra.name, job.device, _LOADERS[job.extra.kind]
    try:
        module = load(job)
    except torch.OutOfMemoryError as exc:
        raise OutOfMemory(f"{name} does not fit on {device}") from exc
    except (OSError, ValueError, KeyError, SafetensorError, NamesDiffer) as exc:
        raise WeightsUnreadable(f"{name}: the files in {job.weights.folder} are broken") from exc
    return module


def _load_components(job: ExtraLoadJob) -> Mapping[str, Component]:
    return {each.name: _load_component(job, each) for each in job.extra.components}


def _load_component(
    job: ExtraLoadJob, component: ComponentSpec, build_device: str = "meta"
) -> Component:
    name, folder = job.extra.name, job.weights.folder / component.name
    with job.timeline.span("build", name):
        skeleton = build_module(
            component.library, component.class_name, folder, device=build_device
        )
    files = [read_tensors(path, job.device, job.prefetch) for path in tensor_paths(folder)]
    with job.timeline.span("bind", name):
        return bind_files(skeleton, files, folder, DTYPE[job.precision], job.device)


def _load_single(job: ExtraLoadJob) -> Component:
    (module,) = _load_components(job).values()
    return module


def _load_upscaler(job: ExtraLoadJob) -> Component:
    """Load Swin2SR, which computes positions when it is built. Raises ModelUnavailable."""
    (component,) = job.extra.components
    module = _load_component(job, component, build_device="cpu").to(job.device)
    if module.config.upscale != job.extra.scale:
        raise ModelUnavailable(
            f"{job.extra.name}: {job.weights.folder}: expected a scale of {job.extra.scale}, "
            f"got {module.config.upscale}"
        )
    return module


def _load_redux(job: ExtraLoadJob) -> Component:
    return Redux(**_load_components(job))


# --- IP-Adapter Plus, as https://huggingface.co/h94/IP-Adapter has it ---------------------------


def _load_ip_adapter(job: ExtraLoadJob) -> Component:
    name, file = job.extra.name, job.extra.file
    assert file is not None, "the catalog has checked it"
    path = job.weights.folder / file
    tensors = read_tensors(path, job.device, job.prefetch).tensors
    check_ip_adapter(name, path, tensors)
    with job.timeline.span("build", name):
        renamed = dict(_renamed(tensors))
        skeleton = _build_ip_adapter(renamed)
    with job.timeline.span("bind", name):
        bind(skeleton, renamed, DTYPE[job.precision])
    return skeleton


def check_ip_adapter(extra: str, path: Path, names: Collection[str]) -> None:
    """Raise ModelUnavailable for a file whose tensors are not those of an IP-Adapter Plus."""
    if "image_proj.latents" not in names:
        raise ModelUnavailable(f"{extra}: {path}: expected an IP-Adapter Plus, got something else")


def _renamed(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors by the names that they have in IpAdapter. Raises KeyError for unknown ones."""
    numbers = sorted({int(found[1]) for name in tensors if (found := _LAYER.match(name))})
    for number, layer in enumerate(numbers):
        for part in ("key", "value"):
            name = f"ip_adapter.{layer}.to_{part[0]}_ip.weight"
            yield f"attentions.{number}.{part}", tensors[name]
    for name, tensor in tensors.items():
        if name.startswith("image_proj."):
            inner = f"projection.{name.removeprefix('image_proj.')}"
            for pattern, replacement in _RESAMPLER.items():
                inner = re.sub(pattern, replacement, inner)
            if ".to_kv." in inner:
                key, value = tensor.chunk(2)
                yield inner.replace("to_kv", "to_k"), key
                yield inner.replace("to_kv", "to_v"), value
            else:
                yield inner, tensor
        elif _LAYER.fullmatch(name) is None:
            raise KeyError(name)


_LAYER = re.compile(r"ip_adapter\.(\d+)\.to_[kv]_ip\.weight")

_RESAMPLER: Mapping[str, str] = {
    r"(layers\.\d+)\.0\.norm1\.": r"\1.ln0.",
    r"(layers\.\d+)\.0\.norm2\.": r"\1.ln1.",
    r"(layers\.\d+)\.0\.to_out\.": r"\1.attn.to_out.0.",
    r"(layers\.\d+)\.0\.to_": r"\1.attn.to_",
    r"(layers\.\d+)\.1\.0\.": r"\1.ff.0.",
    r"(layers\.\d+)\.1\.1\.": r"\1.ff.1.net.0.proj.",
    r"(layers\.\d+)\.1\.3\.": r"\1.ff.1.net.2.",
}
"""Names of a published resampler, and those of diffusers' class."""


def _build_ip_adapter(tensors: Mapping[str, torch.Tensor]) -> IpAdapter:
    """Build an adapter without memory, as large as these tensors."""
    layers = {name.split(".")[2] for name in tensors if name.startswith("projection.layers.")}
    _, num_queries, channels = tensors["projection.latents"].shape
    with torch.device("meta"), WithoutValues():
        projection = IPAdapterPlusImageProjection(
            embed_dims=tensors["projection.proj_in.weight"].shape[1],
            output_dims=tensors["projection.proj_out.weight"].shape[0],
            hidden_dims=channels,
            depth=len(layers),
            dim_head=HEAD_CHANNELS,
            heads=tensors["projection.layers.0.attn.to_q.weight"].shape[0] // HEAD_CHANNELS,
            num_queries=num_queries,
            ffn_ratio=tensors["projection.layers.0.ff.1.net.2.weight"].shape[1] / channels,
        )
        num_attentions = sum(name.endswith(".key") for name in tensors)
        names = [f"attentions.{number}" for number in range(num_attentions)]
        attentions = [
            ImageAttention(tensors[f"{name}.key"].shape, tensors[f"{name}.value"].shape)
            for name in names
        ]
        return IpAdapter(projection, attentions)


_LOADERS: Mapping[ExtraKind, Callable[[ExtraLoadJob], Component]] = {
    ExtraKind.CONTROLNET: _load_single,
    ExtraKind.REFINER: _load_single,
    ExtraKind.IMAGE_ENCODER: _load_single,
    ExtraKind.IP_ADAPTER: _load_ip_adapter,
    ExtraKind.REDUX: _load_redux,
    ExtraKind.UPSCALER: _load_upscaler,
    ExtraKind.DEPTH_ESTIMATOR: _load_single,
}
