"""Keeps the parts of loaded models within the memory that a plan gives them.

What moves, `residency` decides; how it moves, `parking` knows.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pixpod.catalog import Family, Size
from pixpod.engine.memory.needs import Part
from pixpod.engine.memory.offloading import ParkedWeights
from pixpod.engine.memory.residency import Moves, Plan
from pixpod.errors import OutOfMemory

if TYPE_CHECKING:
    from pixpod.engine.loading.pipelines import LoadedModel

log = logging.getLogger(__name__)

WorkingBytes = Callable[[Family, Size | None, int], int]
"""What it takes to work, as `Footprints.working_bytes` tells."""


@dataclass(slots=True, kw_only=True)
class _Held:
    """A part that was loaded. `size_bytes` counts while it is on the device."""

    weights: ParkedWeights
    size_bytes: int
    is_there: bool = True


class Placement:
    """Parts of models on one device. All methods may be called from any thread.

    One thread draws, and tells what it is `using` until it is `done`; others load. Whoever needs
    room that others are working in waits for them.
    """

    def __init__(self, plan: Plan, working_bytes: WorkingBytes) -> None:
        self.plan = plan
        self._needed_bytes = working_bytes
        self._changed = threading.Condition()
        self._parts: dict[Part, _Held] = {}  # the one used longest ago first
        self._coming: dict[Part, int] = {}
        self._kept: Counter[Part] = Counter()
        self._drawn_with: frozenset[Part] = frozenset()
        self._working_bytes = 0
        self._moved_bytes = 0

    @property
    def moved_bytes(self) -> int:
        """Brought back to the device so far."""
        with self._changed:
            return self._moved_bytes

    @property
    def host_bytes(self) -> int:
        """What copies of parts take in host memory."""
        with self._changed:
            return sum(held.weights.host_bytes for held in self._parts.values())

    def admit(
        self, part: Part, size_bytes: int, device: torch.device, load: Callable[[], nn.Module]
    ) -> nn.Module:
        """Make room, then load a part of a model. Raises what `load` raises."""
        with self._changed:
            self._make_room({part: size_bytes})
            self._coming[part] = size_bytes
        try:
            module = load()
            self._take(part, module, device)
        finally:
            with self._changed:
                del self._coming[part]
                self._changed.notify_all()
        return module

    def add(self, model: "LoadedModel") -> None:
        """Take note of a loaded model."""
        self._take_all(model, model.spec.family.components)

    def using(
        self,
        model: "LoadedModel",
        components: Iterable[str],
        size: Size | None = None,
        num_rows: int = 1,
    ) -> float:
        """Have these components on the device, and room to work with them; what was used before
        may go. Milliseconds that this took.

        `size` and `num_rows` are of the batch that is to be drawn, None for a text. Whether a
        batch fits that is larger than the plan allows for, shows when it is drawn. Raises
        OutOfMemory if the parts themselves do not fit.
        """
        parts = self._parts_of(model, components)
        working_bytes = self._needed_bytes(model.spec.family, size, num_rows)
        started = time.perf_counter()
        with self._changed:
            self._drawn_with = frozenset()
            self._changed.notify_all()
            self._working_bytes = working_bytes
            moves = self._fetch(parts)
            self._drawn_with = frozenset(parts)
        if not moves.bring and not moves.evict:
            return 0.0
        swap_ms = (time.perf_counter() - started) * 1e3
        _log_moves(moves, swap_ms)
        return swap_ms

    def done(self) -> None:
        """The batch is drawn: all that it used may go."""
        with self._changed:
            self._drawn_with = frozenset()
            self._working_bytes = 0
            self._changed.notify_all()

    @contextmanager
    def keeping(self, model: "LoadedModel", components: Iterable[str]) -> Iterator[None]:
        """These components on the device, e.g. to compile them; nobody evicts them meanwhile, and
        their weights may be replaced.
        """
        components = tuple(components)
        parts = self._parts_of(model, components)
        with self._changed:
            self._fetch(parts)
            self._kept.update(parts)
        try:
            yield
        finally:
            self._take_all(model, components)
            with self._changed:
                self._kept.subtract(parts)
                self._kept += Counter()  # drops what is at zero
                self._changed.notify_all()

    def park_others(self, model: "LoadedModel") -> bool:
        """Evict all that this model's batch does not need now; whether there was anything."""
        with self._changed:
            idle = self._idle()
            self._evict(idle)
        if idle:
            log.info("memory is short", extra={"model": model.spec.name, "parked": _names(idle)})
        return bool(idle)

    def clear(self) -> None:
        """Forget all parts, so that dropping their models frees the device and the host."""
        with self._changed:
            self._parts.clear()

    def _take_all(self, model: "LoadedModel", components: Iterable[str]) -> None:
        for component in components:
            self._take(model.parts[component], getattr(model.pipe, component), model.device)

    def _take(self, part: Part, module: nn.Module, device: torch.device) -> None:
        weights = ParkedWeights(module, device)
        if part in self.plan.parked:
            weights.copy()
        with self._changed:
            self._parts[part] = _Held(weights=weights, size_bytes=weights.size_bytes)
            self._changed.notify_all()

    def _parts_of(self, model: "LoadedModel", components: Iterable[str]) -> tuple[Part, ...]:
        """Those that are not known yet are taken note of."""
        parts = {component: model.parts[component] for component in components}
        for component, part in parts.items():
            module = getattr(model.pipe, component)
            with self._changed:
                held = self._parts.get(part)
            if held is None or held.weights.module is not module:
                self._take(part, module, model.device)
        return tuple(parts.values())

    # --- under the lock ----------------------------------------------------------------------

    def _fetch(self, parts: Iterable[Part]) -> Moves:
        wanted = {}
        for part in parts:
            held = self._parts[part] = self._parts.pop(part)  # to the end of the order of use
            wanted[part] = held.size_bytes
        moves = self._make_room(wanted)
        for part in moves.bring:
            self._bring(part, stays=wanted)
        return moves

    def _make_room(self, wanted: Mapping[Part, int]) -> Moves:
        """Evict for these; waits as long as somebody else's work is all that is in the way."""
        while True:
            there = {part: held.size_bytes for part, held in self._parts.items() if held.is_there}
            busy = {*self._drawn_with, *self._kept, *self._coming} - wanted.keys()
            moves = self.plan.next_moves(
                {**there, **self._coming}, wanted, self._working_bytes, busy
            )
            if moves.fits or not busy:
                self._evict(moves.evict)
                return moves
            self._changed.wait()

    def _evict(self, parts: Iterable[Part]) -> None:
        for part in parts:
            self._parts[part].weights.park()
            self._parts[part].is_there = False

    def _bring(self, part: Part, stays: Iterable[Part]) -> None:
        """Where sizes have misled, as when memory is in pieces, the rest goes for a second try."""
        held = self._parts[part]
        try:
            held.weights.bring()
        except torch.OutOfMemoryError:
            self._evict(self._idle(stays))
            try:
                held.weights.bring()
            except torch.OutOfMemoryError as exc:
                raise OutOfMemory(f"{part} does not fit on the device") from exc
        held.is_there = True
        self._moved_bytes += held.size_bytes

    def _idle(self, stays: Iterable[Part] = ()) -> tuple[Part, ...]:
        busy = {*stays, *self._drawn_with, *self._kept, *self._coming}
        return tuple(
            part for part, held in self._parts.items() if held.is_there and part not in busy
        )


def _log_moves(moves: Moves, swap_ms: float) -> None:
    log.info(
        "parts moved",
        extra={
            "brought": _names(moves.bring),
            "evicted": _names(moves.evict),
            "ms": round(swap_ms, 1),
        },
    )


def _names(parts: Iterable[Part]) -> list[str]:
    return [str(part) for part in parts]
