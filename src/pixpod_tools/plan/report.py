"""Renders a plan as a table, and as one line of JSON."""

import json
from collections.abc import Iterator, Sequence

from tabulate import tabulate

from pixpod.engine.memory.needs import Need
from pixpod.engine.memory.residency import BUS_BYTES_PER_S, ResidencyPlan
from pixpod.engine.scheduling.batching import BUCKETS
from pixpod.families import GIB


def format_plan(title: str, plan: ResidencyPlan) -> str:
    return "\n".join(_lines(title, plan)) + "\n"


def plan_as_json(title: str, plan: ResidencyPlan) -> str:
    largest = {need.title: _max_batch_size(plan, need) for need in plan.needs}
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
    rows.append(("left for images", f"{plan.left_bytes / GIB:.2f}", ""))
    yield _table(("component", "GiB", "where"), rows, ("left", "right", "left")) + "\n"
    titles = ("model", "activations", "max batch size", "onloads at most")
    models = [
        (
            need.title,
            f"{max(stage.working_bytes(1) for stage in need.stages) / GIB:.2f} GiB",
            str(_max_batch_size(plan, need)),
            f"{plan.onload_s(need):.2f} s",
        )
        for need in plan.needs
    ]
    yield _table(titles, models, ("left", "right", "right", "right"))


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], sides: Sequence[str]) -> str:
    return tabulate(rows, titles, colalign=sides, disable_numparse=True)


def _max_batch_size(plan: ResidencyPlan, need: Need) -> int:
    return plan.max_batch_size(need.model, need.stages, max(BUCKETS))
