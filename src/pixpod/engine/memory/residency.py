"""Decides which components live on the GPU. Numbers only: no tensor, no thread.

Each stage of an image needs only its own components on the GPU. The others may be offloaded to
page-locked host memory, and are onloaded when their stage comes.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pixpod.engine.component_key import ComponentKey
from pixpod.engine.memory.budget import Budget
from pixpod.engine.memory.needs import Need, all_sizes
from pixpod.engine.memory.shortages import find_shortages
from pixpod.errors import ModelUnavailable
from pixpod.families import GIB
from pixpod.methods import StageName, StagePlan

BUS_BYTES_PER_S = 20e9
"""Speed from page-locked memory to a GPU over 16 lanes of PCIe 4; 20 to 25 GB/s are seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """Components to offload, then components to onload.

    `fits` is false where even that does not free enough memory.
    """

    offload: tuple[ComponentKey, ...]
    onload: tuple[ComponentKey, ...]
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencyPlan:
    """Places of components while images of the models' default sizes are generated.

    `offloaded` components take turns in the memory that `resident` ones and activations leave.
    Extras that no stack has are in neither of them. Without a budget nothing is ever offloaded.
    """

    needs: tuple[Need, ...]
    budget: Budget | None
    resident: Mapping[ComponentKey, int]
    offloaded: Mapping[ComponentKey, int]

    @property
    def sizes(self) -> Mapping[ComponentKey, int]:
        """Bytes of all components, each once, in the order of the needs."""
        return all_sizes(self.needs)

    @property
    def left_bytes(self) -> int | None:
        """Bytes for activations and for offloaded components in use."""
        if self.budget is None:
            return None
        return self.budget.free_bytes - sum(self.resident.values())

    @property
    def spare_bytes(self) -> int | None:
        """Bytes that no stage of a single image needs, apart from slots for LoRAs.

        Slots may be kept in them between batches. None without a budget.
        """
        if self.left_bytes is None:
            return None
        needed = (
            stage.working_bytes(1) - stage.slot_bytes + self._onload_bytes(need, stage)
            for need in self.needs
            for stage in need.planned_stages
        )
        return max(0, self.left_bytes - max(needed, default=0))

    def max_batch_size(self, model: str, stages: Sequence[StagePlan], wanted: int) -> int:
        """Return how many of `wanted` images fit into one batch with resident components in place.

        `stages` are those of a single request. At least 1, as there are further ways to save
        memory for a single image.
        """
        need = next((need for need in self.needs if need.model == model), None)
        if self.left_bytes is None or need is None:
            return wanted
        fitting = (
            batch_size
            for batch_size in range(wanted, 1, -1)
            if all(
                stage.working_bytes(batch_size) + self._onload_bytes(need, stage) <= self.left_bytes
                for stage in stages
            )
        )
        return next(fitting, 1)

    def onload_s(self, need: Need, stages: Sequence[StagePlan]) -> float:
        """Return the seconds that onloading everything takes that these stages may lack."""
        found = {key: size for stage in stages for key, size in self._onloads(need, stage)}
        return sum(found.values()) / BUS_BYTES_PER_S

    def needed_bytes(self, need: Need, stages: Sequence[StagePlan]) -> int:
        """Return the bytes of a GPU that the largest of these stages needs, with CUDA."""
        overhead_bytes = self.budget.overhead_bytes if self.budget else 0
        return max(map(need.stage_bytes, stages)) + overhead_bytes

    def _onload_bytes(self, need: Need, stage: StagePlan) -> int:
        return sum(size for _, size in self._onloads(need, stage))

    def _onloads(self, need: Need, stage: StagePlan) -> Iterator[tuple[ComponentKey, int]]:
        """Yield what a stage uses and no plan keeps on the GPU, with its bytes."""
        for key, size in need.components_of(stage).items():
            if key not in self.resident:
                yield key, size

    def next_transfers(
        self,
        on_gpu: Mapping[ComponentKey, int],
        wanted: Mapping[ComponentKey, int],
        working_bytes: int,
        in_use: Collection[ComponentKey] = (),
    ) -> Transfers:
        """Decide how `wanted` components come to be on the GPU beside activations.

        `on_gpu` has the component that was used longest ago first, with real sizes. Components
        `in_use` or wanted stay. Those that are no part of the plan go first, then those that it
        offloads, then those that it keeps; of equal ones, the one used longest ago. Nothing goes
        that could stay.
        """
        onload = tuple(key for key in wanted if key not in on_gpu)
        if self.budget is None:
            return Transfers(offload=(), onload=onload, fits=True)
        needed = working_bytes + sum(wanted[key] for key in onload)
        short = sum(on_gpu.values()) + needed - self.budget.free_bytes
        idle = [key for key in on_gpu if key not in wanted and key not in in_use]
        # stable: the order of use is kept
        idle.sort(key=lambda key: (key in self.resident, key in self.offloaded))
        offload: list[ComponentKey] = []
        for key in idle:
            if short <= 0:
                break
            offload.append(key)
            short -= on_gpu[key]
        for key in reversed(offload):
            if short + on_gpu[key] <= 0:
                offload.remove(key)
                short += on_gpu[key]
        return Transfers(offload=tuple(offload), onload=onload, fits=short <= 0)

    def summary(self) -> dict[str, object]:
        """Return figures for the log and for tables, in GiB and seconds."""
        return {
            "usable_gib": _gib(self.budget.gpu_bytes) if self.budget else None,
            "overhead_gib": _gib(self.budget.overhead_bytes) if self.budget else None,
            "left_gib": None if self.left_bytes is None else _gib(self.left_bytes),
            "resident_gib": {str(key): _gib(size) for key, size in self.resident.items()},
            "offloaded_gib": {str(key): _gib(size) for key, size in self.offloaded.items()},
            "onload_s": {
                need.title: round(self.onload_s(need, need.stages), 2) for need in self.needs
            },
            "stacks_gib": {
                stack.name: _gib(self.needed_bytes(need, stack.stages))
                for need in self.needs
                for stack in need.declared_stacks
            },
        }


def make_plan(needs: Sequence[Need], budget: Budget | None) -> ResidencyPlan:
    """Keep as many components on the GPU as is possible if each stage is to run there.

    Large text encoders are offloaded first, because a cache of their embeddings makes that cheap,
    then extras, which not every request uses, then the denoisers of the models named last. Extras
    that no stack has are no part of the plan: they come when requests need them. Raises
    ModelUnavailable for a model, a stack or an extra that cannot run there whatever is offloaded.
    """
    resident = all_sizes(needs)
    offloaded: dict[ComponentKey, int] = {}
    if budget is not None:
        if shortages := find_shortages(needs, budget):
            raise ModelUnavailable("; ".join(map(str, shortages)))
        for key in _offload_order(needs):
            if _works(needs, resident, budget):
                break
            offloaded[key] = resident.pop(key)
        for key in reversed(list(offloaded)):
            if _works(needs, {**resident, key: offloaded[key]}, budget):
                resident[key] = offloaded.pop(key)  # it made no room where room was needed
    order = all_sizes(needs)
    return ResidencyPlan(
        needs=tuple(needs),
        budget=budget,
        resident={key: size for key, size in order.items() if key in resident},
        offloaded=offloaded,
    )


def _works(needs: Sequence[Need], resident: Mapping[ComponentKey, int], budget: Budget) -> bool:
    kept_bytes = sum(resident.values())
    return all(
        kept_bytes
        + stage.working_bytes(1)
        + sum(size for key, size in need.components_of(stage).items() if key not in resident)
        <= budget.free_bytes
        for need in needs
        for stage in need.planned_stages
    )


def _offload_order(needs: Sequence[Need]) -> list[ComponentKey]:
    """Order all components; of equal ones, those of the model that is named last come first."""
    encoders: dict[ComponentKey, int] = {}
    others: dict[ComponentKey, int] = {}
    denoisers = {need.keys[need.denoiser] for need in needs}
    for need in reversed(needs):
        for stage in need.planned_stages:
            into = encoders if stage.name is StageName.TEXT_ENCODE else others
            into |= need.components_of(stage)
    by_size = sorted(encoders, key=lambda key: -encoders[key])
    large = [key for key in by_size if encoders[key] >= GIB]
    extras = [key for key in others if key.is_extra]
    first = [*large, *extras, *(key for key in others if key in denoisers)]
    return [*first, *(key for key in (*by_size, *others) if key not in first)]


def _gib(size_bytes: int) -> float:
    return round(size_bytes / GIB, 2)
