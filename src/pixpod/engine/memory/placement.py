"""Keeps the components of loaded models within the memory that a plan gives them.

`residency` decides what moves, `offloading` moves it.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from pixpod.engine.component_key import ComponentKey
from pixpod.engine.memory.offloading import OffloadableWeights
from pixpod.engine.memory.residency import ResidencyPlan, Transfers
from pixpod.engine.model import LoadedModel
from pixpod.errors import OutOfMemory
from pixpod.methods import StagePlan

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Placed:
    """A component that was loaded. `size_bytes` counts while it is on the device."""

    weights: OffloadableWeights
    size_bytes: int
    is_on_device: bool = True


class Placement:
    """Components of models on one device. All methods may be called from any thread.

    One thread runs stages: it calls `onload` for each and `release` at the end. Other threads
    load. A thread that needs memory in which others work waits for them.
    """

    def __init__(self, plan: ResidencyPlan) -> None:
        self.plan = plan
        self._changed = threading.Condition()
        self._placed: dict[ComponentKey, _Placed] = {}  # the one used longest ago first
        self._loading: dict[ComponentKey, int] = {}
        self._pinned: Counter[ComponentKey] = Counter()
        self._in_use: frozenset[ComponentKey] = frozenset()
        self._working_bytes = 0

    @property
    def host_bytes(self) -> int:
        """Bytes that copies of components take in host memory."""
        with self._changed:
            return sum(placed.weights.host_bytes for placed in self._placed.values())

    @property
    def on_device(self) -> frozenset[ComponentKey]:
        """Components that are on the device now."""
        with self._changed:
            return frozenset(key for key, placed in self._placed.items() if placed.is_on_device)

    def admit(
        self,
        key: ComponentKey,
        size_bytes: int,
        device: torch.device,
        load: Callable[[], nn.Module],
    ) -> nn.Module:
        """Make room, then load a component. Raises what `load` raises."""
        with self._changed:
            self._make_room({key: size_bytes})
            self._loading[key] = size_bytes
        try:
            module = load()
            self._place(key, module, device)
        finally:
            with self._changed:
                del self._loading[key]
                self._changed.notify_all()
        return module

    def add(self, model: LoadedModel) -> None:
        """Register the components of a loaded model."""
        self._place_all(model, model.spec.family.component_names)

    def onload(self, model: LoadedModel, stage: StagePlan, batch_size: int = 1) -> float:
        """Onload a stage's components, and make room for its activations.

        May offload components of the stage before. Returns the milliseconds that this took. A batch
        larger than the plan allows may still run out of memory when it runs. Raises OutOfMemory
        if the components themselves do not fit.
        """
        keys = self._keys_of(model, stage.components)
        started = time.perf_counter()
        with self._changed:
            self._in_use = frozenset()
            self._changed.notify_all()
            self._working_bytes = stage.working_bytes(batch_size)
            transfers = self._transfer(keys)
            self._in_use = frozenset(keys)
        if not transfers.onload and not transfers.offload:
            return 0.0
        onload_ms = (time.perf_counter() - started) * 1e3
        _log_transfers(transfers, onload_ms)
        return onload_ms

    def release(self) -> None:
        """Allow everything that the last stage used to be offloaded."""
        with self._changed:
            self._in_use = frozenset()
            self._working_bytes = 0
            self._changed.notify_all()

    @contextmanager
    def pinning(self, model: LoadedModel, components: Iterable[str]) -> Iterator[None]:
        """Keep these components on the device, e.g. to compile them.

        Nobody offloads them meanwhile, and their weights may be replaced.
        """
        components = tuple(components)
        keys = self._keys_of(model, components)
        with self._changed:
            self._transfer(keys)
            self._pinned.update(keys)
        try:
            yield
        finally:
            self._place_all(model, components)
            with self._changed:
                self._pinned.subtract(keys)
                self._pinned += Counter()  # drops components with a count of zero
                self._changed.notify_all()

    def offload_others(self, model: LoadedModel) -> bool:
        """Offload everything that this model's stage does not need; return False for nothing."""
        with self._changed:
            idle = self._idle()
            self._offload(idle)
        if idle:
            names = _names(idle)
            log.info("memory is short", extra={"model": model.spec.name, "offloaded": names})
        return bool(idle)

    def clear(self) -> None:
        """Forget all components, so that dropping their models frees the device and the host."""
        with self._changed:
            self._placed.clear()

    def _place_all(self, model: LoadedModel, components: Iterable[str]) -> None:
        for component in components:
            self._place(model.key_of(component), model.module_of(component), model.device)

    def _place(self, key: ComponentKey, module: nn.Module, device: torch.device) -> None:
        weights = OffloadableWeights(module, device)
        if key in self.plan.offloaded:
            weights.copy_to_host()
        with self._changed:
            self._placed[key] = _Placed(weights=weights, size_bytes=weights.size_bytes)
            self._changed.notify_all()

    def _keys_of(self, model: LoadedModel, components: Iterable[str]) -> tuple[ComponentKey, ...]:
        """Return the keys of components; unknown ones are registered."""
        keys = {component: model.key_of(component) for component in components}
        for component, key in keys.items():
            module = model.module_of(component)
            with self._changed:
                placed = self._placed.get(key)
            if placed is None or placed.weights.module is not module:
                self._place(key, module, model.device)
        return tuple(keys.values())

    # --- under the lock ----------------------------------------------------------------------

    def _transfer(self, keys: Iterable[ComponentKey]) -> Transfers:
        wanted = {}
        for key in keys:
            placed = self._placed[key] = self._placed.pop(key)  # to the end of the order of use
            wanted[key] = placed.size_bytes
        transfers = self._make_room(wanted)
        for key in transfers.onload:
            self._onload(key, stays=wanted)
        return transfers

    def _make_room(self, wanted: Mapping[ComponentKey, int]) -> Transfers:
        """Offload others to make room for these; wait while only other threads prevent that."""
        while True:
            there = {
                key: placed.size_bytes
                for key, placed in self._placed.items()
                if placed.is_on_device
            }
            busy = {*self._in_use, *self._pinned, *self._loading} - wanted.keys()
            transfers = self.plan.next_transfers(
                {**there, **self._loading}, wanted, self._working_bytes, busy
            )
            if transfers.fits or not busy:
                self._offload(transfers.offload)
                return transfers
            self._changed.wait()

    def _offload(self, keys: Iterable[ComponentKey]) -> None:
        for key in keys:
            self._placed[key].weights.offload()
            self._placed[key].is_on_device = False

    def _onload(self, key: ComponentKey, stays: Iterable[ComponentKey]) -> None:
        """Onload a component; offloads all idle ones and tries again if memory is in pieces."""
        placed = self._placed[key]
        try:
            placed.weights.onload()
        except torch.OutOfMemoryError:
            self._offload(self._idle(stays))
            try:
                placed.weights.onload()
            except torch.OutOfMemoryError as exc:
                raise OutOfMemory(f"{key} does not fit on the device") from exc
        placed.is_on_device = True

    def _idle(self, stays: Iterable[ComponentKey] = ()) -> tuple[ComponentKey, ...]:
        busy = {*stays, *self._in_use, *self._pinned, *self._loading}
        return tuple(
            key for key, placed in self._placed.items() if placed.is_on_device and key not in busy
        )


def _log_transfers(transfers: Transfers, onload_ms: float) -> None:
    log.info(
        "components moved",
        extra={
            "onloaded": _names(transfers.onload),
            "offloaded": _names(transfers.offload),
            "ms": round(onload_ms, 1),
        },
    )


def _names(keys: Iterable[ComponentKey]) -> list[str]:
    return [str(key) for key in keys]
