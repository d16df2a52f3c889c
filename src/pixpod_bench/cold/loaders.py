"""The ways to load a model that are compared, by name. Runs in a probe; imports torch.

Ours and diffusers' leave a pipeline that can draw, the others only tensors: what binding those
would take is given to them for free. On a CPU all that a loader gives is summed, word by word with
all of torch's threads, because a mapped file is not read before; ours has touched every byte for
its checksums already.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module

import diffusers
import torch
from torch import nn

from pixpod.catalog import Precision
from pixpod.engine.device import find_place
from pixpod.engine.loading import device_memory
from pixpod.engine.loading.components import DTYPE
from pixpod.engine.loading.loader import ModelLoader
from pixpod.engine.precision.precision import choose_precision
from pixpod.timeline import BootTimeline
from pixpod.weights.layout import PIPELINE_CLASS, read_stored
from pixpod.weights.prefetch import Verify
from pixpod.weights.sources import BakedSource, WeightsLocator
from pixpod_bench.cold.case import Case, catalog_for

Load = Callable[[Case], object]
"""Returns what holds the memory, once all bytes are there."""


def ours(verify: Verify, copying_threads: int | None = None) -> Load:
    """The worker's own: readers, checksums, binding."""

    def load(case: Case) -> object:
        if copying_threads:
            device_memory.COPYING_THREADS = copying_threads
        spec = catalog_for(case.device)[case.model]
        loader = ModelLoader(
            models={spec.name: spec},
            locator=WeightsLocator((BakedSource(case.directory),)),
            device=case.device,
            asked_precision=lambda name: _as_stored(case),
            accepted_licences=frozenset({spec.licence}),
            verify=verify,
            timeline=BootTimeline(time.perf_counter),
            on_host_fault=lambda error: None,
        )
        (model,) = loader.preload([spec.name])
        return model.result().pipe

    return load


def _as_stored(case: Case) -> Precision | None:
    """Float8 stays float8, whatever a card is better at: the others convert nothing either."""
    stored = case.weights().precision
    return stored if stored is Precision.FLOAT8_DYNAMIC else None


def stock(*, is_mapped: bool) -> Load:
    """As the documentation of diffusers says: on the CPU and then to the device, or by
    `device_map` straight there.
    """

    def load(case: Case) -> object:
        spec = catalog_for(case.device)[case.model]
        weights = case.weights()
        device = torch.device(case.device)
        stored = read_stored(spec, weights)
        precision = choose_precision(spec, stored, find_place(device)).precision
        pipeline_class = getattr(diffusers, PIPELINE_CLASS[spec.family])
        options = {"device_map": case.device} if is_mapped else {}
        pipe = pipeline_class.from_pretrained(
            weights.folder, dtype=DTYPE[precision], local_files_only=True, **options
        )
        if not is_mapped:
            pipe.to(device)
        if case.device == "cpu":
            for component in spec.family.components:
                _touch(_tensors(getattr(pipe, component)))
        return pipe

    return load


def tensors_only(stream: Callable[[Case, list[str]], Iterator[torch.Tensor]]) -> Load:
    """A library that reads files, but builds no models."""

    def load(case: Case) -> object:
        kept = []
        for tensor in stream(case, [str(path) for path in case.paths()]):
            if case.device == "cpu":
                _touch([tensor])
            kept.append(tensor)
        return kept

    return load


def _place(case: Case) -> str:
    """The device as libraries beside torch call it."""
    return "cuda:0" if case.device == "cuda" else case.device


def _safetensors(backend: str) -> Callable[[Case, list[str]], Iterator[torch.Tensor]]:
    def stream(case: Case, paths: list[str]) -> Iterator[torch.Tensor]:
        from safetensors import safe_open

        for path in paths:
            with safe_open(path, framework="pt", device=_place(case), backend=backend) as file:
                for name in file.keys():  # noqa: SIM118 (it is no mapping)
                    yield file.get_tensor(name)

    return stream


def _fastsafetensors(case: Case, paths: list[str]) -> Iterator[torch.Tensor]:
    library = import_module("fastsafetensors")
    with library.fastsafe_open(paths, device=_place(case), nogds=True) as files:
        for name in files.keys():  # noqa: SIM118
            yield files.get_tensor(name)


def _runai(case: Case, paths: list[str]) -> Iterator[torch.Tensor]:
    library = import_module("runai_model_streamer")
    with library.SafetensorsStreamer() as streamer:
        streamer.stream_files(paths, device=_place(case))
        for _, tensor in streamer.get_tensors():
            yield tensor


def _instanttensor(case: Case, paths: list[str]) -> Iterator[torch.Tensor]:
    library = import_module("instanttensor")
    with library.safe_open(paths, framework="pt", device=_place(case)) as files:
        for _, tensor in files.tensors():
            yield tensor.clone()  # it is a view of a buffer that is used again


LOADERS: Mapping[str, Load] = {
    "ours": ours(Verify.CHUNKS),
    "ours, sizes only": ours(Verify.SIZES),
    "ours, sha256": ours(Verify.FULL),
    "ours, 1 copying thread": ours(Verify.CHUNKS, 1),
    "ours, 2 copying threads": ours(Verify.CHUNKS, 2),
    "ours, 8 copying threads": ours(Verify.CHUNKS, 8),
    "from_pretrained": stock(is_mapped=False),
    "from_pretrained, device_map": stock(is_mapped=True),
    "safetensors mmap": tensors_only(_safetensors("mmap")),
    "safetensors pread": tensors_only(_safetensors("pread")),
    "fastsafetensors": tensors_only(_fastsafetensors),
    "runai-model-streamer": tensors_only(_runai),
    "instanttensor": tensors_only(_instanttensor),
}


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    for tensor in (*module.parameters(), *module.buffers()):
        yield from _plain(tensor.data)


def _plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor, or the parts of one of torchao."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    names, _ = flatten()
    for name in names:
        yield from _plain(getattr(tensor, name))


def _touch(tensors: Iterable[torch.Tensor]) -> None:
    """Read every byte, at the pace of the memory where a tensor is whole words long."""
    for tensor in tensors:
        data = tensor.contiguous().flatten().view(torch.uint8)
        is_words = len(data) % 8 == 0 and data.storage_offset() % 8 == 0
        (data.view(torch.int64) if is_words else data).sum().item()
