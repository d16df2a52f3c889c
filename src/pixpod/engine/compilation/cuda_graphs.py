"""CUDA graphs of compiled regions: captured at the second call of a form, replayed from then on.

A UNet launches thousands of small kernels, and a fast GPU finishes each of them before the host has
launched the next. A graph launches all of them at once. It refers to memory by address: arguments
are copied to the addresses that were captured, results are copied out, and a graph is dropped when
the weights have moved. torch's own `cudagraph_trees` keeps a graph for each size and each address
for good.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import nn
from torch.utils._pytree import tree_map

from pixpod.engine.compilation.calls import Compiled
from pixpod.engine.compilation.regions import Call, Slot, read_weights, weight_slots

log = logging.getLogger(__name__)

MAX_POSITIONS = 2 * 128 * 128
"""Largest call that is captured, in samples times latent positions: one image of 1024 px with
guidance. In larger calls kernels should take longer than their launches, and a graph keeps its
working memory. Neither this limit nor MAX_FORMS has been measured yet.
"""

MAX_FORMS = 8
"""Graphs kept for one kind of region. The least recently called one is dropped first."""

_Form = tuple[object, ...]
"""A region, with the shapes, dtypes and constants that a call must share to replay its graph."""

Run = Callable[[], Any]
"""A call of a region with fixed arguments. Any: the result of a region has no common type."""


class GraphCapturer(Protocol):
    """Captures the kernels that a call launches, without running them."""

    def capture(self, run: Run) -> tuple[Any, Callable[[], None]]:
        """Return the result of `run`, not computed yet, and a function that computes it into the
        same memory each time. Raises RuntimeError.
        """
        ...


class CudaGraphs:
    """Captures graphs on one GPU. They share their working memory: only one runs at a time, and
    its result is copied before the next one runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def capture(self, run: Run) -> tuple[Any, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        pool = next((other.pool() for other in self._graphs), None)
        with torch.cuda.stream(self._stream):
            # other threads load models meanwhile, and may allocate
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                result = run()
            finally:
                graph.capture_end()
        self._graphs.add(graph)
        return result, graph.replay


class GraphedRegion:
    """A Compiled that replays captured graphs for small calls. All calls come from one thread."""

    def __init__(self, compiled: Compiled, capturer: GraphCapturer) -> None:
        self._compiled = compiled
        self._capturer: GraphCapturer | None = capturer
        self._forms: OrderedDict[_Form, _CapturedCall | None] = OrderedDict()
        with _lock:
            _alive.add(self)

    @property
    def num_graphs(self) -> int:
        return sum(captured is not None for captured in self._forms.values())

    def __call__(self, region: nn.Module, call: Call) -> object:
        if self._capturer is None or not _is_small(call):
            return self._compiled(region, call)
        form = _form_of(region, call)
        if form not in self._forms:
            result = self._compiled(region, call)  # the first call may compile
            self._remember(form, None)
            return result
        captured = self._forms.pop(form)
        if captured is None or captured.is_stale:
            try:
                captured = self._capture(self._capturer, region, call)
            except RuntimeError as exc:  # torch's; memory may be short
                log.warning("no CUDA graphs are captured", extra={"error": type(exc).__name__})
                self.stop_capturing()
                return self._compiled(region, call)
        self._remember(form, captured)
        return captured.replay(call)

    def stop_capturing(self) -> None:
        """Free all graphs and their working memory, and capture no more."""
        self._forms.clear()
        self._capturer = None

    def _remember(self, form: "_Form", captured: "_CapturedCall | None") -> None:
        self._forms[form] = captured  # at the end: forms are in order of use
        if len(self._forms) > MAX_FORMS:
            self._forms.popitem(last=False)

    def _capture(self, capturer: GraphCapturer, region: nn.Module, call: Call) -> "_CapturedCall":
        arguments = tuple(tensor.clone() for tensor in call.tensors)
        run = partial(self._compiled, region, call.with_tensors(arguments))
        result, replay = capturer.capture(run)
        slots = _one_slot_per_storage(weight_slots(region))
        return _CapturedCall(
            arguments=arguments, result=result, run=replay, slots=slots, addresses=_addresses(slots)
        )


_alive: WeakSet[GraphedRegion] = WeakSet()
_lock = threading.Lock()
"""Guards `_alive`: a model may be compiled while another one generates."""


def stop_capturing() -> None:
    """Free the graphs of all models in this process, and capture no more: memory is short."""
    with _lock:
        for region in _alive:
            region.stop_capturing()


@dataclass(frozen=True, slots=True, kw_only=True)
class _CapturedCall:
    arguments: Sequence[torch.Tensor]
    result: Any
    run: Callable[[], None]
    slots: Sequence[Slot]
    addresses: Sequence[int]

    @property
    def is_stale(self) -> bool:
        """Return True once weights have moved."""
        return _addresses(self.slots) != self.addresses

    def replay(self, call: Call) -> object:
        for argument, given in zip(self.arguments, call.tensors, strict=True):
            argument.copy_(given)
        self.run()
        return tree_map(torch.clone, self.result)


def _is_small(call: Call) -> bool:
    latents = next(call.tensors)
    return latents.shape[0] * latents.shape[-2] * latents.shape[-1] <= MAX_POSITIONS


def _form_of(region: nn.Module, call: Call) -> _Form:
    leaves = (
        (leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf for leaf in call.leaves
    )
    return (region, call.spec, *leaves)


def _one_slot_per_storage(slots: Iterable[Slot]) -> tuple[Slot, ...]:
    """Return one slot of each storage, enough to see a move: a storage's weights move together."""
    found: dict[int, Slot] = {}
    for slot in slots:
        for weight in read_weights([slot]):
            found.setdefault(weight.untyped_storage()._cdata, slot)
    return tuple(found.values())


def _addresses(slots: Sequence[Slot]) -> tuple[int, ...]:
    return tuple(weight.untyped_storage().data_ptr() for weight in read_weights(slots))
