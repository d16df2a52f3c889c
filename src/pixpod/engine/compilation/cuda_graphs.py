"""All launches of a compiled region as one: recorded at its second call, replayed from then on.

A UNet is thousands of small kernels, which a fast card has done before the host has launched the
next. CUDA graphs know addresses: arguments are copied to where they were, results are copied out,
and what was recorded is dropped when weights have moved. torch's own (`cudagraph_trees`) keeps a
recording for each size and each address for good.
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
"""Rows times positions of latents, those of one image of 1024 px with guidance: beyond, kernels
should take longer than their launches, and a recording keeps the memory that it works in. Not
measured yet, nor is the number of forms below.
"""

MAX_FORMS = 8
"""Of one kind of region; the one that was called longest ago goes first."""

_Form = tuple[object, ...]
"""A region, and what a call of it must have in common with another to be replayed for it."""

Run = Callable[[], Any]
"""A region on fixed arguments. Any: what a region returns."""


class Recorder(Protocol):
    """Takes note of what a call asks of the device."""

    def record(self, run: Run) -> tuple[Any, Callable[[], None]]:
        """What `run` returns, not computed yet, and what computes it, into the same memory each
        time. Raises RuntimeError.
        """
        ...


class CudaGraphs:
    """Recorder of one card. Recordings share the memory that they work in: none runs beside
    another, and results are copied before the next one does.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def record(self, run: Run) -> tuple[Any, Callable[[], None]]:
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


class Recorded:
    """A Compiled whose calls are replayed, as far as that pays. All calls come from one thread."""

    def __init__(self, compiled: Compiled, recorder: Recorder) -> None:
        self._compiled = compiled
        self._recorder: Recorder | None = recorder
        self._forms: OrderedDict[_Form, _Recording | None] = OrderedDict()
        with _lock:
            _alive.add(self)

    @property
    def num_recordings(self) -> int:
        return sum(recording is not None for recording in self._forms.values())

    def __call__(self, region: nn.Module, call: Call) -> object:
        if self._recorder is None or not _pays(call):
            return self._compiled(region, call)
        form = _form_of(region, call)
        if form not in self._forms:
            result = self._compiled(region, call)  # which may have to be compiled first
            self._remember(form, None)
            return result
        recording = self._forms.pop(form)
        if recording is None or recording.is_stale:
            try:
                recording = self._record(self._recorder, region, call)
            except RuntimeError as exc:  # torch's; memory may be short
                log.warning("launches are not recorded", extra={"error": type(exc).__name__})
                self.give_up()
                return self._compiled(region, call)
        self._remember(form, recording)
        return recording.replay(call)

    def give_up(self) -> None:
        """Drop all recordings and the memory that they work in, and make no more."""
        self._forms.clear()
        self._recorder = None

    def _remember(self, form: "_Form", recording: "_Recording | None") -> None:
        self._forms[form] = recording  # at the end: they are in the order of use
        if len(self._forms) > MAX_FORMS:
            self._forms.popitem(last=False)

    def _record(self, recorder: Recorder, region: nn.Module, call: Call) -> "_Recording":
        arguments = tuple(tensor.clone() for tensor in call.tensors)
        result, run = recorder.record(partial(self._compiled, region, call.with_tensors(arguments)))
        slots = _one_of_each_storage(weight_slots(region))
        return _Recording(
            arguments=arguments, result=result, run=run, slots=slots, addresses=_addresses(slots)
        )


_alive: WeakSet[Recorded] = WeakSet()
_lock = threading.Lock()
"""Of `_alive`: models are compiled while others are drawn."""


def stop_recording() -> None:
    """Of all models in this process, for good: memory is short."""
    with _lock:
        for recorded in _alive:
            recorded.give_up()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recording:
    arguments: Sequence[torch.Tensor]
    result: Any
    run: Callable[[], None]
    slots: Sequence[Slot]
    addresses: Sequence[int]

    @property
    def is_stale(self) -> bool:
        """Whether weights are elsewhere by now."""
        return _addresses(self.slots) != self.addresses

    def replay(self, call: Call) -> object:
        for argument, given in zip(self.arguments, call.tensors, strict=True):
            argument.copy_(given)
        self.run()
        return tree_map(torch.clone, self.result)


def _pays(call: Call) -> bool:
    latents = next(call.tensors)
    return latents.shape[0] * latents.shape[-2] * latents.shape[-1] <= MAX_POSITIONS


def _form_of(region: nn.Module, call: Call) -> _Form:
    leaves = (
        (leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf for leaf in call.leaves
    )
    return (region, call.spec, *leaves)


def _one_of_each_storage(slots: Iterable[Slot]) -> tuple[Slot, ...]:
    """A file's weights are one storage, and move as one."""
    found: dict[int, Slot] = {}
    for slot in slots:
        for weight in read_weights([slot]):
            found.setdefault(weight.untyped_storage()._cdata, slot)
    return tuple(found.values())


def _addresses(slots: Sequence[Slot]) -> tuple[int, ...]:
    return tuple(weight.untyped_storage().data_ptr() for weight in read_weights(slots))
