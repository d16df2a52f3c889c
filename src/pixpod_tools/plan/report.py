"""Renders a plan as a table, and as one line of JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence

from tabulate import tabulate

from pixpod.engine.component_key import ComponentKey
from pixpod.engine.memory.needs import Need, StackNeed
from pixpod.engine.memory.residency import BUS_BYTES_PER_S, ResidencyPlan
from pixpod.engine.scheduling.batching import BUCKETS
from pixpod.families import GIB
from pixpod.methods import StagePlan


def format_plan(title: str, plan: ResidencyPlan) -> str:
    return "\n".join(_lines(title, plan)) + "\n"


def plan_as_json(title: str, plan: ResidencyPlan) -> str:
    largest = {need.title: _max_batch_size(plan, need, need.stages) for need in plan.needs}
    largest |= {
        stack.name: _max_batch_size(plan, need, stack.stages)
        for need in plan.needs
        for stack in need.declared_stacks
    }
    return json.dumps({"gpu": title, **plan.summary(), "max_batch_size": largest})


def _lines(title: str, plan: ResidencyPlan) -> Iterator[str]:
    assert plan.budget is not None and plan.left_bytes is not None
    yield f"{title}: {plan.budget.gpu_bytes / GIB:.1f} GiB to plan with\n"
    rows = [("CUDA and its libraries", f"{plan.budget.overhead_bytes / GIB:.2f}", "GPU")]
    for key, size_bytes in plan.sizes.items():
        onload_s = size_bytes / BUS_BYTES_PER_S
        offloaded = f"offloaded to host memory, onloads in {onload_s:.2f} s"
        where = offloaded if key in plan.offloaded else "GPU"
        rows.append((str(key), f"{size_bytes / GIB:.2f}", where))
    on_demand = "when jobs name it, and the first to go"
    for key, size_bytes in _unplanned(plan).items():
        rows.append((str(key), f"{size_bytes / GIB:.2f}", on_demand))
    rows.append(("left for images", f"{plan.left_bytes / GIB:.2f}", ""))
    yield _table(("component", "GiB", "where"), rows, ("left", "right", "left")) + "\n"
    titles = ("model", "activations", "max batch size", "onloads at most")
    models = [
        (
            need.title,
            f"{max(stage.working_bytes(1) for stage in need.stages) / GIB:.2f} GiB",
            str(_max_batch_size(plan, need, need.stages)),
            f"{plan.onload_s(need, need.stages):.2f} s",
        )
        for need in plan.needs
    ]
    yield _table(titles, models, ("left", "right", "right", "right"))
    if stacks := [_stack_row(plan, need, stack) for need in plan.needs for stack in need.stacks]:
        heads = ("stack", "largest stage", "needs", "max batch size", "onloads at most")
        yield "\n" + _table(heads, stacks, ("left", "left", "right", "right", "right"))


def _unplanned(plan: ResidencyPlan) -> Mapping[ComponentKey, int]:
    """Return the bytes of extras that no stack has."""
    every = {key: size for need in plan.needs for key, size in need.sizes.items()}
    return {key: size for key, size in every.items() if key not in plan.sizes}


def _stack_row(plan: ResidencyPlan, need: Need, stack: StackNeed) -> tuple[str, ...]:
    return (
        stack.name if stack.is_declared else f"({stack.name})",
        max(stack.stages, key=need.stage_bytes).name,
        f"{plan.needed_bytes(need, stack.stages) / GIB:.2f} GiB",
        str(_max_batch_size(plan, need, stack.stages)),
        f"{plan.onload_s(need, stack.stages):.2f} s",
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], sides: Sequence[str]) -> str:
    return tabulate(rows, titles, colalign=sides, disable_numparse=True)


def _max_batch_size(plan: ResidencyPlan, need: Need, stages: Sequence[StagePlan]) -> int:
    return plan.max_batch_size(need.model, stages, max(BUCKETS))
