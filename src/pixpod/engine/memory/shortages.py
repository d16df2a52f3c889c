"""Finds models, stacks and extras that cannot run on a GPU whatever is offloaded. Numbers only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pixpod.engine.memory.budget import Budget
from pixpod.engine.memory.needs import Need, StackNeed
from pixpod.families import GIB
from pixpod.methods import StageName, StagePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """A stage that does not fit on a GPU.

    `parts` are the bytes that it needs, by what needs them. `ways` say what would help.
    """

    subject: str
    stage: StageName
    parts: Mapping[str, int]
    gpu_bytes: int
    ways: tuple[str, ...]

    @property
    def needed_bytes(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {_gib(size)}" for name, size in self.parts.items())
        return (
            f"{self.subject} needs {_gib(self.needed_bytes)} GiB of the GPU for its stage "
            f"{self.stage} ({listed}), and there are {_gib(self.gpu_bytes)}: "
            f"{', or '.join(self.ways)}"
        )


def find_shortages(needs: Sequence[Need], budget: Budget) -> list[Shortage]:
    """Return what does not fit: models, else their stacks and extras."""
    return [shortage for need in needs for shortage in _shortages(need, budget)]


def _shortages(need: Need, budget: Budget) -> Iterator[Shortage]:
    stage = _largest(need, need.stages)
    if _needed(need, stage, budget) > budget.gpu_bytes:
        yield _shortage(need, stage, budget, need.title, [f"leave {need.model} out"])
        return
    for stack in need.stacks:
        stage = _largest(need, stack.stages)
        if _needed(need, stage, budget) <= budget.gpu_bytes:
            continue
        if stack.is_declared:
            subject, ways = f"{stack.name} in {need.precision}", _ways(need, stack, budget)
        else:
            name = stack.parts[0]
            subject, ways = f"{need.title} with {name}", [f"leave {name} out of PIXPOD_EXTRAS"]
        yield _shortage(need, stage, budget, subject, ways)


def _shortage(
    need: Need, stage: StagePlan, budget: Budget, subject: str, ways: Sequence[str]
) -> Shortage:
    components = need.components_of(stage)
    parts = {key.component: size for key, size in components.items()}
    parts["activations"] = stage.working_bytes(1) - stage.slot_bytes
    if stage.slot_bytes:
        parts["LoRAs"] = stage.slot_bytes
    parts["CUDA"] = budget.overhead_bytes
    needed = _needed(need, stage, budget)
    smaller = needed - need.saved_bytes
    has_denoiser = need.denoiser in stage.components
    in_8_bits = need.saved_bytes and has_denoiser and smaller <= budget.gpu_bytes
    return Shortage(
        subject=subject,
        stage=stage.name,
        parts=parts,
        gpu_bytes=budget.gpu_bytes,
        ways=(
            *([f"run it in 8 bits, which takes {_gib(smaller)} GiB"] if in_8_bits else []),
            f"choose a GPU with {_gib(needed)} GiB for models",
            *ways,
        ),
    )


def _ways(need: Need, stack: StackNeed, budget: Budget) -> list[str]:
    """Return each part without which the stack would fit; else the fewest, the largest first."""
    fitting = []
    for parts, stages in stack.smaller:
        taken = _needed(need, _largest(need, stages), budget)
        if taken <= budget.gpu_bytes:
            fitting.append((parts, taken))
    fewest = len(fitting[0][0])
    return [
        f"leave {' and '.join(parts)} out of it, which takes {_gib(taken)} GiB"
        for parts, taken in fitting
        if len(parts) == fewest
    ]


def _largest(need: Need, stages: Sequence[StagePlan]) -> StagePlan:
    return max(stages, key=need.stage_bytes)


def _needed(need: Need, stage: StagePlan, budget: Budget) -> int:
    return need.stage_bytes(stage) + budget.overhead_bytes


def _gib(size_bytes: int) -> float:
    return round(size_bytes / GIB, 2)
