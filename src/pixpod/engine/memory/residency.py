"""Decides which components live on the GPU. Numbers only: no tensor, no thread.

Each stage of an image needs only its own components on the GPU. The others may be offloaded to
page-locked host memory, and are onloaded when their stage comes.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pixpod.engine.component_key import ComponentKey
from pixpod.engine.memory.needs import MARGIN_BYTES, OVERHEAD_BYTES, Need, all_sizes
from pixpod.errors import ModelUnavailable
from pixpod.families import GIB
from pixpod.methods import StageName, StagePlan

BUS_BYTES_PER_S = 20e9
"""Speed from page-locked memory to a GPU over 16 lanes of PCIe 4; 20 to 25 GB/s are seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes of a GPU that may be used, and those that are used before a model is loaded."""

    gpu_bytes: int
    overhead_bytes: int

    @property
    def free_bytes(self) -> int:
        return self.gpu_bytes - self.overhead_bytes


def budget_for(memory_bytes: int | None, limit_gib: float | None) -> Budget | None:
    """Return the budget of a GPU with so much memory; None on a CPU without a limit."""
    if limit_gib is not None:
        limit_bytes = round(limit_gib * GIB)
        gpu_bytes = min(limit_bytes, memory_bytes or limit_bytes)
    elif memory_bytes is not None:
        gpu_bytes = memory_bytes - MARGIN_BYTES
    else:
        return None
    return Budget(gpu_bytes=gpu_bytes, overhead_bytes=OVERHEAD_BYTES)


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
    Without a budget nothing is ever offloaded.
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
        """Bytes that no stage of a single image of any model needs; None without a budget."""
        if self.left_bytes is None:
            return None
        needed = (
            stage.working_bytes(1) + self._onload_bytes(need.components_of(stage))
            for need in self.needs
            for stage in need.stages
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
                stage.working_bytes(batch_size)
                + self._onload_bytes(need.components_of(stage))
                + need.extra_bytes_of(stage)
                <= self.left_bytes
                for stage in stages
            )
        )
        return next(fitting, 1)

    def onload_s(self, need: Need) -> float:
        """Return the seconds that onloading all offloaded components of a model takes."""
        return self._onload_bytes(need.sizes) / BUS_BYTES_PER_S

    def _onload_bytes(self, sizes: Mapping[ComponentKey, int]) -> int:
        return sum(size for key, size in sizes.items() if key in self.offloaded)

    def next_transfers(
        self,
        on_gpu: Mapping[ComponentKey, int],
        wanted: Mapping[ComponentKey, int],
        working_bytes: int,
        in_use: Collection[ComponentKey] = (),
    ) -> Transfers:
        """Decide how `wanted` components come to be on the GPU beside activations.

        `on_gpu` has the component that was used longest ago first, with real sizes. Components
        `in_use` or wanted stay. Those that the plan offloads go before those that it keeps, else
        the one used longest ago goes first. Nothing goes that could stay.
        """
        onload = tuple(key for key in wanted if key not in on_gpu)
        if self.budget is None:
            return Transfers(offload=(), onload=onload, fits=True)
        needed = working_bytes + sum(wanted[key] for key in onload)
        short = sum(on_gpu.values()) + needed - self.budget.free_bytes
        idle = [key for key in on_gpu if key not in wanted and key not in in_use]
        idle.sort(key=lambda key: key in self.resident)  # stable: the order of use is kept
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
            "onload_s": {need.title: round(self.onload_s(need), 2) for need in self.needs},
        }


def make_plan(needs: Sequence[Need], budget: Budget | None) -> ResidencyPlan:
    """Keep as many components on the GPU as is possible if each stage is to run there.

    Large text encoders are offloaded first, because a cache of their embeddings makes that cheap,
    then the denoisers of the models named last. Extras come when requests need them. Raises
    ModelUnavailable for a model that cannot run there whatever is offloaded, and for an extra.
    """
    resident = all_sizes(needs)
    offloaded: dict[ComponentKey, int] = {}
    if budget is not None:
        refusals = [text for need in needs for text in _refusals(need, budget)]
        if refusals:
            raise ModelUnavailable("; ".join(refusals))
        for key in _offload_order(needs):
            if _works(needs, resident, budget):
                break
            offloaded[key] = resident.pop(key)
    return ResidencyPlan(needs=tuple(needs), budget=budget, resident=resident, offloaded=offloaded)


def _works(needs: Sequence[Need], resident: Mapping[ComponentKey, int], budget: Budget) -> bool:
    kept_bytes = sum(resident.values())
    return all(
        kept_bytes
        + stage.working_bytes(1)
        + sum(size for key, size in need.components_of(stage).items() if key not in resident)
        <= budget.free_bytes
        for need in needs
        for stage in need.stages
    )


def _offload_order(needs: Sequence[Need]) -> list[ComponentKey]:
    """Order all components; of equal ones, those of the model that is named last come first."""
    encoders: dict[ComponentKey, int] = {}
    others: dict[ComponentKey, int] = {}
    for need in reversed(needs):
        for stage in need.stages:
            into = encoders if stage.name is StageName.TEXT_ENCODE else others
            into |= need.components_of(stage)
    by_size = sorted(encoders, key=lambda key: -encoders[key])
    large = [key for key in by_size if encoders[key] >= GIB]
    denoisers = [key for key in others if key.precision]
    rest = [key for key in (*by_size, *others) if key not in large and key not in denoisers]
    return [*large, *denoisers, *rest]


def _refusals(need: Need, budget: Budget) -> Iterator[str]:
    """Yield why a model, or one of its extras, cannot run on this GPU whatever is offloaded."""
    if text := _refusal(need, budget):
        yield text
        return
    stage = next(each for each in need.stages if need.denoiser in each.components)
    for name, size_bytes in need.extras.items():
        taken = need.stage_bytes(stage) + size_bytes + budget.overhead_bytes
        if name in need.refiners:
            taken -= need.sizes[need.keys[need.denoiser]]
        if taken > budget.gpu_bytes:
            yield (
                f"{need.title} with the extra {name} ({_gib(size_bytes)} GiB) needs {_gib(taken)} "
                f"GiB of the GPU, and there are {_gib(budget.gpu_bytes)}: choose a GPU with more, "
                "or leave it out of PIXPOD_EXTRAS"
            )


def _refusal(need: Need, budget: Budget) -> str | None:
    """Return why a model cannot run on this GPU whatever is offloaded, and what would help."""
    stage = max(need.stages, key=need.stage_bytes)
    taken = need.stage_bytes(stage) + budget.overhead_bytes
    if taken <= budget.gpu_bytes:
        return None
    sizes = need.components_of(stage)
    listed = ", ".join(f"{key.component} {_gib(size)}" for key, size in sizes.items())
    ways = [f"choose a GPU with {_gib(taken)} GiB for us", f"leave {need.model} out"]
    smaller = taken - need.saved_bytes
    if need.saved_bytes and need.denoiser in stage.components and smaller <= budget.gpu_bytes:
        ways.insert(0, f"run it in 8 bits, which takes {_gib(smaller)} GiB")
    return (
        f"{need.title} needs {_gib(taken)} GiB of the GPU for its stage {stage.name} ({listed}, "
        f"activations {_gib(stage.working_bytes(1))}, CUDA {_gib(budget.overhead_bytes)}), and "
        f"there are {_gib(budget.gpu_bytes)}: {', or '.join(ways)}"
    )


def _gib(size_bytes: int) -> float:
    return round(size_bytes / GIB, 2)
