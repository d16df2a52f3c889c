"""Which parts of models live on the card. POLICY: numbers only; knows no tensor and no thread.

Each stage of an image needs its own parts on the card only. A part that is not there is parked in
page-locked host memory and comes when its stage does.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pixpod.catalog import Size
from pixpod.engine.memory.footprints import GIB, Footprints
from pixpod.engine.memory.needs import Need, Part
from pixpod.errors import ModelUnavailable

BUS_BYTES_PER_S = 20e9
"""From page-locked memory to a card over 16 lanes of PCIe 4; 20 to 25 GB/s are seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes of a card that may be used, and what is gone before there is a model."""

    card_bytes: int
    overhead_bytes: int

    @property
    def free_bytes(self) -> int:
        return self.card_bytes - self.overhead_bytes


def budget_for(
    footprints: Footprints, memory_bytes: int | None, limit_gib: float | None
) -> Budget | None:
    """Of a card with so much memory, as its driver tells; None on a CPU without a limit."""
    if limit_gib is not None:
        limit_bytes = round(limit_gib * GIB)
        card_bytes = min(limit_bytes, memory_bytes or limit_bytes)
    elif memory_bytes is not None:
        card_bytes = memory_bytes - footprints.margin_bytes
    else:
        return None
    return Budget(card_bytes=card_bytes, overhead_bytes=footprints.overhead_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Parts to evict, then parts to bring; `fits` is false where even that is not room enough."""

    evict: tuple[Part, ...]
    bring: tuple[Part, ...]
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where parts live while images of the models' default sizes are drawn.

    `parked` take turns in what `resident` and working memory leave. Without a budget nothing is
    parked, ever.
    """

    needs: tuple[Need, ...]
    budget: Budget | None
    resident: Mapping[Part, int]
    parked: Mapping[Part, int]

    @property
    def parts(self) -> Mapping[Part, int]:
        """All of them, each once, in the order of the needs."""
        return {part: size for need in self.needs for part, size in need.parts.items()}

    @property
    def left_bytes(self) -> int | None:
        """For activations, and for parked parts in use."""
        if self.budget is None:
            return None
        return self.budget.free_bytes - sum(self.resident.values())

    def rows_that_fit(self, model: str, size: Size, wanted: int) -> int:
        """How many of `wanted` images may be drawn as one batch without evicting what is resident:
        1 at least, as there are further ways to save memory for a single one.
        """
        need = next((need for need in self.needs if need.model == model), None)
        if self.left_bytes is None or need is None:
            return wanted
        left_bytes = self.left_bytes - self._coming_bytes(need.image)
        fitting = (
            num_rows
            for num_rows in range(wanted, 1, -1)
            if need.working.needed_bytes(size, num_rows) <= left_bytes
        )
        return next(fitting, 1)

    def swap_s(self, need: Need) -> float:
        """What bringing a model's parked parts takes, if all of them are to come."""
        return self._coming_bytes(need.parts) / BUS_BYTES_PER_S

    def _coming_bytes(self, parts: Mapping[Part, int]) -> int:
        return sum(size for part, size in parts.items() if part in self.parked)

    def next_moves(
        self,
        on_card: Mapping[Part, int],
        wanted: Mapping[Part, int],
        working_bytes: int,
        in_use: Collection[Part] = (),
    ) -> Moves:
        """How `wanted` come to be on the card beside working memory.

        `on_card` has the part that was used longest ago first, and each part's real size. What is
        `in_use` or wanted stays; what the plan parks goes before what it keeps, else what was
        used longest ago goes first; nothing goes that could stay.
        """
        bring = tuple(part for part in wanted if part not in on_card)
        if self.budget is None:
            return Moves(evict=(), bring=bring, fits=True)
        needed = working_bytes + sum(wanted[part] for part in bring)
        short = sum(on_card.values()) + needed - self.budget.free_bytes
        idle = [part for part in on_card if part not in wanted and part not in in_use]
        idle.sort(key=lambda part: part in self.resident)  # stable: the order of use is kept
        evict: list[Part] = []
        for part in idle:
            if short <= 0:
                break
            evict.append(part)
            short -= on_card[part]
        for part in reversed(evict):
            if short + on_card[part] <= 0:
                evict.remove(part)
                short += on_card[part]
        return Moves(evict=tuple(evict), bring=bring, fits=short <= 0)

    def summary(self) -> dict[str, object]:
        """For the log and for tables: GiB, rows and seconds."""
        return {
            "usable_gib": _gib(self.budget.card_bytes) if self.budget else None,
            "overhead_gib": _gib(self.budget.overhead_bytes) if self.budget else None,
            "left_gib": None if self.left_bytes is None else _gib(self.left_bytes),
            "resident_gib": {str(part): _gib(size) for part, size in self.resident.items()},
            "parked_gib": {str(part): _gib(size) for part, size in self.parked.items()},
            "swap_s": {need.title: round(self.swap_s(need), 2) for need in self.needs},
        }


def make_plan(needs: Sequence[Need], budget: Budget | None) -> Plan:
    """Keep as much on the card as lets each stage of each model work there.

    The first to be parked are large text encoders, which a cache of their embeddings makes cheap,
    then the denoisers of those named last. Raises ModelUnavailable for a model that cannot work
    there whatever is parked.
    """
    resident = {part: size for need in needs for part, size in need.parts.items()}
    parked: dict[Part, int] = {}
    if budget is None:
        return Plan(needs=tuple(needs), budget=None, resident=resident, parked=parked)
    _refuse_what_cannot_fit(needs, budget)
    for part in _parking_order(needs):
        if _works(needs, resident, budget):
            break
        parked[part] = resident.pop(part)
    return Plan(needs=tuple(needs), budget=budget, resident=resident, parked=parked)


def _works(needs: Sequence[Need], resident: Mapping[Part, int], budget: Budget) -> bool:
    kept_bytes = sum(resident.values())
    return all(
        kept_bytes
        + working_bytes
        + sum(size for part, size in stage.items() if part not in resident)
        <= budget.free_bytes
        for need in needs
        for stage, working_bytes in need.stages()
    )


def _parking_order(needs: Sequence[Need]) -> list[Part]:
    """All parts, and of equal ones those of the model that is named last first."""
    encoders = {part: size for need in reversed(needs) for part, size in need.text.items()}
    others = {part: size for need in reversed(needs) for part, size in need.image.items()}
    by_size = sorted(encoders, key=lambda part: -encoders[part])
    large = [part for part in by_size if encoders[part] >= GIB]
    denoisers = [part for part in others if part.precision]
    rest = [part for part in (*by_size, *others) if part not in large and part not in denoisers]
    return [*large, *denoisers, *rest]


def _refuse_what_cannot_fit(needs: Sequence[Need], budget: Budget) -> None:
    refusals = [text for need in needs if (text := _refusal(need, budget))]
    if refusals:
        raise ModelUnavailable("; ".join(refusals))


def _refusal(need: Need, budget: Budget) -> str | None:
    stage, working_bytes = max(need.stages(), key=lambda each: sum(each[0].values()) + each[1])
    taken = sum(stage.values()) + working_bytes + budget.overhead_bytes
    if taken <= budget.card_bytes:
        return None
    listed = ", ".join(f"{part.component} {_gib(size)}" for part, size in stage.items())
    ways = [f"choose a card with {_gib(taken)} GiB for us", f"leave {need.model} out"]
    smaller = taken - need.saved_bytes
    if need.saved_bytes and stage is need.image and smaller <= budget.card_bytes:
        ways.insert(0, f"run it in 8 bits, which takes {_gib(smaller)} GiB")
    return (
        f"{need.title} needs {_gib(taken)} GiB of the card at once ({listed}, to work with "
        f"{_gib(working_bytes)}, CUDA {_gib(budget.overhead_bytes)}), and there are "
        f"{_gib(budget.card_bytes)}: {', or '.join(ways)}"
    )


def _gib(size_bytes: int) -> float:
    return round(size_bytes / GIB, 2)
