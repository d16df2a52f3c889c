"""A plan as a table, and as one line of JSON."""

import json
from collections.abc import Iterator

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
    yield f"{title}: {plan.budget.gpu_bytes / GIB:.1f} GiB to plan with"
    yield ""
    cuda = "CUDA and its libraries"
    width = max(len(str(key)) for key in (*plan.resident, *plan.offloaded, cuda))
    yield f"{'component':{width}}  {'GiB':>6}  where"
    yield f"{cuda:{width}}  {plan.budget.overhead_bytes / GIB:6.2f}  GPU"
    for key, size_bytes in plan.sizes.items():
        where = "GPU"
        if key in plan.offloaded:
            where = f"offloaded to host memory, onloads in {size_bytes / BUS_BYTES_PER_S:.2f} s"
        yield f"{key!s:{width}}  {size_bytes / GIB:6.2f}  {where}"
    yield f"{'left for images':{width}}  {plan.left_bytes / GIB:6.2f}"
    yield ""
    width = max(len(need.title) for need in plan.needs)
    heads = ("activations", "max batch size", "onloads at most")
    yield f"{'model':{width}}  " + "  ".join(f"{head:>15}" for head in heads)
    for need in plan.needs:
        working = max(stage.working_bytes(1) for stage in need.stages)
        batch_size = str(_max_batch_size(plan, need))
        cells = (f"{working / GIB:.2f} GiB", batch_size, f"{plan.onload_s(need):.2f} s")
        yield f"{need.title:{width}}  " + "  ".join(f"{cell:>15}" for cell in cells)


def _max_batch_size(plan: ResidencyPlan, need: Need) -> int:
    return plan.max_batch_size(need.model, need.stages, max(BUCKETS))
