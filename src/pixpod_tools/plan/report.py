"""A plan as a table, and as one line of JSON."""

import json
from collections.abc import Iterator

from pixpod.engine.memory.footprints import GIB
from pixpod.engine.memory.residency import BUS_BYTES_PER_S, Plan

MOST_ROWS = 8
"""The largest batch that a worker makes."""


def format_plan(title: str, plan: Plan) -> str:
    return "\n".join(_lines(title, plan)) + "\n"


def plan_as_json(title: str, plan: Plan) -> str:
    rows = {need.title: _most_rows(plan, need.model, need.size) for need in plan.needs}
    return json.dumps({"card": title, **plan.summary(), "largest_batch": rows})


def _lines(title: str, plan: Plan) -> Iterator[str]:
    assert plan.budget is not None and plan.left_bytes is not None
    yield f"{title}: {plan.budget.card_bytes / GIB:.1f} GiB to plan with"
    yield ""
    width = max(len(str(part)) for part in (*plan.resident, *plan.parked, "CUDA and its libraries"))
    yield f"{'part':{width}}  {'GiB':>6}  where"
    yield f"{'CUDA and its libraries':{width}}  {plan.budget.overhead_bytes / GIB:6.2f}  card"
    for part, size_bytes in plan.parts.items():
        where = "card"
        if part in plan.parked:
            where = f"parked in host memory, comes in {size_bytes / BUS_BYTES_PER_S:.2f} s"
        yield f"{part!s:{width}}  {size_bytes / GIB:6.2f}  {where}"
    yield f"{'left for images':{width}}  {plan.left_bytes / GIB:6.2f}"
    yield ""
    titles = [need.title for need in plan.needs]
    width = max(map(len, titles))
    heads = ("image", "to draw it", "largest batch", "waits at most")
    yield f"{'model':{width}}  " + "  ".join(f"{head:>13}" for head in heads)
    for need in plan.needs:
        size = f"{need.size[0]}x{need.size[1]}"
        working = f"{need.working.needed_bytes(need.size, 1) / GIB:.2f} GiB"
        rows = str(_most_rows(plan, need.model, need.size))
        cells = (size, working, rows, f"{plan.swap_s(need):.2f} s")
        yield f"{need.title:{width}}  " + "  ".join(f"{cell:>13}" for cell in cells)


def _most_rows(plan: Plan, model: str, size: tuple[int, int]) -> int:
    return plan.max_batch_size(model, size, MOST_ROWS)
