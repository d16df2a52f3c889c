"""Keeps weight-sharing copies of components with side paths, one for each kind of slots."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch

from pixpod.engine.adapters.side_path import Pair, add_side_paths, can_have_side_path
from pixpod.engine.adapters.weight_sharing import share_weights
from pixpod.engine.model import Compilation, Component, LoadedModel
from pixpod.job import LoraSlots

MAX_COPIES = 16
"""More than one deployment's models need at a time; each has slots in the device's memory."""

CompileCopy = Callable[[LoadedModel], Compilation]
"""Compiles the denoiser of a model, which is a copy."""

Stack = Sequence[tuple[Mapping[str, Pair], float]]
"""The LoRAs of one row: pairs by layer, and the scale."""

_Key = tuple[Component, LoraSlots]
"""The original and the slots of a copy."""


class AdaptedCopy:
    """A copy of `original` whose layers have slots for `max_rows` rows of a batch."""

    def __init__(
        self, original: Component, layers: Sequence[str], rank: int, max_rows: int
    ) -> None:
        self.max_rows = max_rows
        self.module: Component = share_weights(original)
        self.compilation: Compilation | None = None
        self._paths = add_side_paths(self.module, layers, rank, max_rows)

    @property
    def slot_bytes(self) -> int:
        return sum(path.slot_bytes for path in self._paths.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self.compilation.warnings) if self.compilation else ()

    @torch.no_grad()
    def write(self, stacks: Sequence[Stack]) -> None:
        """Write all slots of so many rows; what a row has not is zero."""
        for name, path in self._paths.items():
            path.use_rows(len(stacks))
            for row, stack in enumerate(stacks):
                path.write(row, [(pairs[name], scale) for pairs, scale in stack if name in pairs])


class AdaptedCopies:
    """Copies of the components of all models on a device. For the device's thread alone.

    `compile_copy` compiles a denoiser's copy, None where nothing is compiled.
    """

    def __init__(self, compile_copy: CompileCopy | None = None) -> None:
        self._compile_copy = compile_copy
        self._copies: OrderedDict[_Key, AdaptedCopy] = OrderedDict()
        self._in_use: set[_Key] = set()

    def get(
        self, model: LoadedModel, component: str, slots: LoraSlots, num_rows: int
    ) -> AdaptedCopy:
        """Return a copy with slots for these rows, which is in use until `release`."""
        key = (model.components[component], slots)
        copy = self._copies.get(key)
        if copy is None or copy.max_rows < num_rows:
            copy = None
            self._copies.pop(key, None)  # first: its slots make room for the new ones
            copy = self._copies[key] = self._build(model, component, slots, num_rows)
        self._copies.move_to_end(key)
        self._in_use.add(key)
        self._drop(MAX_COPIES)
        return copy

    def release(self, max_bytes: int | None) -> None:
        """End the use of all copies, and drop the least recently used ones beyond so many bytes."""
        self._in_use.clear()
        while max_bytes is not None and self.slot_bytes > max_bytes:
            self._copies.popitem(last=False)

    @property
    def slot_bytes(self) -> int:
        return sum(copy.slot_bytes for copy in self._copies.values())

    def drop_idle(self) -> bool:
        """Drop the copies that are not in use; return False for none."""
        return self._drop(0)

    def _drop(self, max_copies: int) -> bool:
        num_before = len(self._copies)
        for key in list(self._copies):
            if len(self._copies) > max_copies and key not in self._in_use:
                del self._copies[key]
        return len(self._copies) < num_before

    def _build(
        self, model: LoadedModel, component: str, slots: LoraSlots, num_rows: int
    ) -> AdaptedCopy:
        family, original = model.spec.family, model.components[component]
        is_denoiser = component == family.denoiser
        assert family.lora is not None, "the contract refuses LoRAs for other families"
        layers = [
            name
            for name, layer in original.named_modules()
            if can_have_side_path(layer)
            and (not is_denoiser or family.lora.can_have(name, is_whole=slots.is_whole))
        ]
        copy = AdaptedCopy(original, layers, slots.rank, num_rows)
        if is_denoiser and self._compile_copy is not None:
            components = {**model.components, component: copy.module}
            copy.compilation = self._compile_copy(model.with_components(components))
        return copy
