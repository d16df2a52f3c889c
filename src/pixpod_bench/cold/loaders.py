"""The loaders that are compared, by name. Runs in a probe; imports torch.

pixpod's and diffusers' loaders make a pipeline that can generate. On a CPU all that diffusers loads
is summed, word by word with all of torch's threads, because a mapped file is not read before that;
pixpod's loader has already read every byte for its checksums.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack

import diffusers
import torch
from torch import nn

from pixpod.engine.device import find_hardware
from pixpod.engine.loading.components import DTYPE
from pixpod.engine.precision.precision import choose_precision
from pixpod.testing.engines import warm_engine
from pixpod.weights.layout import read_checkpoint_info
from pixpod_bench.cold.case import Case

Load = Callable[[Case, ExitStack], object]
"""Returns the object that keeps the memory, once all bytes are loaded. The stack stops threads."""


def _ours(case: Case, stack: ExitStack) -> object:
    """Load as a worker's engine does: readers, checksums, binding."""
    engine = stack.enter_context(warm_engine(case.environ()))
    if f"ready_{case.model}" not in engine.boot_ms():
        raise RuntimeError(f"{case.model} could not be loaded")
    return engine


def _stock(case: Case, stack: ExitStack) -> object:
    """Load as diffusers' documentation describes: on the CPU and then to the device."""
    weights, device = case.weights(), torch.device(case.device)
    stored = read_checkpoint_info(case.spec, weights)
    precision = choose_precision(case.spec, stored, find_hardware(device)).precision
    pipe = getattr(diffusers, case.pipeline).from_pretrained(
        weights.folder, dtype=DTYPE[precision], local_files_only=True
    )
    pipe.to(device)
    if case.device == "cpu":
        for component in case.spec.family.component_names:
            _touch(_tensors(getattr(pipe, component)))
    return pipe


LOADERS: Mapping[str, Load] = {"ours": _ours, "from_pretrained": _stock}


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    for tensor in (*module.parameters(), *module.buffers()):
        yield from _plain(tensor.data)


def _plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Return a tensor, or the parts of one of torchao."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    names, _ = flatten()
    for name in names:
        yield from _plain(getattr(tensor, name))


def _touch(tensors: Iterable[torch.Tensor]) -> None:
    """Read every byte, at the speed of the memory if a tensor consists of whole words."""
    for tensor in tensors:
        data = tensor.contiguous().flatten().view(torch.uint8)
        is_words = len(data) % 8 == 0 and data.storage_offset() % 8 == 0
        (data.view(torch.int64) if is_words else data).sum().item()
