"""Packages one region: its calls are captured, then it is exported and compiled."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, export
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten, treespec_dumps

from pixpod.engine.compilation.compile import Options
from pixpod.engine.compilation.regions import Call, Slot, read_weights, weight_slots
from pixpod.engine.compilation.store import CallForm, Leaf
from pixpod.engine.model import LoadedModel

STEPS = 2

MAX_INDEX = 2**31 - 1

HEADROOM = 64
"""Tensors that are smaller by this factor than the largest that 32 bits can index do not matter: no
batch that is served is so much larger than the one for which a package is built."""

TOLERANCE = 0.1
"""Allowed deviation from growth with the call: the proportion of images to texts varies."""

Shape = tuple[int | None, ...]


class CannotPackage(Exception):
    """A region cannot be compiled ahead of time; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A batch that is generated in order to capture the calls of regions."""

    num_rows: int
    width: int
    height: int
    max_sequence_length: int | None


def samples(model: LoadedModel) -> tuple[Sample, Sample]:
    """Return two batches without any number in common: sizes that differ between them may vary.

    Kernels are chosen for the first. Both have several rows, because torch takes a size of 1 for
    a constant; code for several rows also runs with one.
    """
    wide = model.spec.defaults
    length = wide.max_sequence_length
    return (
        Sample(
            num_rows=2,
            width=wide.width,
            height=wide.height * 3 // 4,
            max_sequence_length=length,
        ),
        Sample(
            num_rows=3,
            width=wide.width // 2,
            height=wide.height,
            max_sequence_length=length and length // 2,
        ),
    )


def watch_calls(
    model: LoadedModel, sample: Sample, regions: Mapping[str, nn.Module]
) -> Mapping[str, Call]:
    """Generate a batch, and return the first call of each of these regions."""
    calls: dict[str, Call] = {}

    def watch(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(kind, Call.of(args, kwargs, model.device))

    handles = [
        region.register_forward_pre_hook(
            lambda _, args, kwargs, kind=kind: watch(kind, args, kwargs), with_kwargs=True
        )
        for kind, region in regions.items()
    ]
    try:
        _generate(model, sample)
    finally:
        for handle in handles:
            handle.remove()
    if missing := regions.keys() - calls.keys():
        raise CannotPackage(f"{model.spec.name} does not call {', '.join(sorted(missing))}")
    return calls


def form_of(region: nn.Module, first: Call, second: Call) -> CallForm:
    """Return the form that two calls share. Raises CannotPackage if they differ too much."""
    if first.spec != second.spec:
        raise CannotPackage(f"{type(region).__name__} is called in different ways")
    args, kwargs = tree_unflatten(second.leaves, second.spec)
    with torch.no_grad():
        result = tree_flatten(region(*args, **kwargs))[1]
    return CallForm(
        arguments=treespec_dumps(first.spec),
        result=treespec_dumps(result),
        leaves=tuple(map(_leaf, first.leaves, second.leaves)),
        max_elements=MAX_INDEX,
    )


def build_package(
    region: nn.Module, first: Call, second: Call, options: Options, path: Path
) -> CallForm:
    """Write the package of a region's kind, for the form that two calls share. Takes minutes on a
    GPU, where kernels are tried. Raises CannotPackage.
    """
    form = form_of(region, first, second)
    slots = weight_slots(region)
    weights = list(read_weights(slots))
    arguments = [tensor.clone() for tensor in first.tensors]
    sizes = [None] * len(weights) + list(_dynamic_sizes(form.leaves))
    with torch.no_grad():
        program = export(
            _Functional(region, slots, first),
            ([*weights, *arguments],),
            dynamic_shapes=(sizes,),
            strict=False,
        )
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=dict(options)
        )
    return replace(form, max_elements=_max_elements(program, form, first, second))


def _max_elements(program: ExportedProgram, form: CallForm, first: Call, second: Call) -> int:
    """Return the largest size of a call for which 32 bits can index all intermediate tensors.

    Inductor chooses that width by the first call, and code compiled ahead of time has no guard for
    it. If all tensors grow with the call, a larger call is allowed; else the first is the largest.
    """
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    calls = [_numels(program, _symbols(inputs, list(call.tensors))) for call in (first, second)]
    wide, narrow = (call.leaves[form.growing].numel() for call in (first, second))
    is_proportional = all(
        numel * narrow <= other * wide * (1 + TOLERANCE)
        for numel, other in zip(*calls, strict=True)
        if numel > MAX_INDEX // HEADROOM
    )
    largest = max(calls[0], default=1)
    limit: int = wide * MAX_INDEX // largest if is_proportional else wide
    return limit


def _symbols(inputs: Sequence[Any], tensors: Sequence[torch.Tensor]) -> dict[Any, int]:
    """Return the value in a call of each size that varies. Its tensors are the last of the inputs.

    Any: sympy's symbols and expressions have no types.
    """
    return {
        size.node.expr: actual
        for value, tensor in zip(inputs[-len(tensors) :], tensors, strict=True)
        for size, actual in zip(value.shape, tensor.shape, strict=True)
        if isinstance(size, torch.SymInt) and size.node.expr.is_symbol
    }


def _numels(program: ExportedProgram, sizes: Mapping[Any, int]) -> list[int]:
    """Return the number of elements of all intermediate tensors, in the order of the graph."""
    numels: Iterator[Any] = (
        value.numel() for node in program.graph.nodes for value in _tensors(node.meta.get("val"))
    )
    return [
        int(numel.node.expr.xreplace(sizes)) for numel in numels if isinstance(numel, torch.SymInt)
    ]


def _tensors(value: object) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


class _Functional(nn.Module):
    """A region whose weights are arguments, before its own. It has no weights itself, because they
    would become a part of the package.
    """

    def __init__(self, region: nn.Module, slots: Sequence[Slot], call: Call) -> None:
        super().__init__()
        self.__dict__["region"] = region  # past nn.Module, which would register it
        self._weights = [(slot, slot.weight) for slot in slots]
        self._call = call

    def forward(self, tensors: list[torch.Tensor]) -> object:
        rest = iter(tensors)
        weights = {slot.name: _rebuild(slot, weight, rest) for slot, weight in self._weights}
        leaves = [
            next(rest) if isinstance(leaf, torch.Tensor) else leaf for leaf in self._call.leaves
        ]
        args, kwargs = tree_unflatten(leaves, self._call.spec)
        return torch.func.functional_call(self.__dict__["region"], weights, args, kwargs)


def _rebuild(slot: Slot, weight: torch.Tensor, rest: Iterator[torch.Tensor]) -> torch.Tensor:
    if not slot.parts:
        return next(rest)
    parts = {part: next(rest) for part in slot.parts}
    # Any: tensor classes declare these methods by convention only
    quantized: Any = weight
    _, context = quantized.__tensor_flatten__()
    rebuilt: torch.Tensor = type(quantized).__tensor_unflatten__(
        parts, context, weight.size(), weight.stride()
    )
    return rebuilt


def _generate(model: LoadedModel, sample: Sample) -> None:
    spec = model.spec
    arguments: dict[str, object] = {}
    if sample.max_sequence_length is not None:
        arguments["max_sequence_length"] = sample.max_sequence_length
    if spec.defaults.guidance_scale is not None:
        arguments["guidance_scale"] = spec.defaults.guidance_scale
    with torch.no_grad():
        model.full_pipeline()(
            ["a photo of a lighthouse"] * sample.num_rows,
            width=sample.width,
            height=sample.height,
            num_inference_steps=STEPS,
            output_type="pt",
            **arguments,
        )


def _leaf(first: object, second: object) -> Leaf:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return Leaf(
            shape=tuple(
                size if size == other else None
                for size, other in zip(first.shape, second.shape, strict=True)
            ),
            dtype=str(first.dtype).removeprefix("torch."),
            example=tuple(second.shape),
        )
    if first != second or not isinstance(first, bool | int | float | str | None):
        raise CannotPackage(f"an argument is a {type(first).__name__}: expected tensors")
    return Leaf(constant=first)


def _dynamic_sizes(leaves: Iterable[Leaf]) -> Iterator[dict[int, Any] | None]:
    for leaf in leaves:
        if leaf.shape is not None:
            yield {i: Dim.AUTO for i, size in enumerate(leaf.shape) if size is None} or None
