"""One measured run: a fresh process that prepares, waits to be told, runs, and prints one line.

`python -m pixpod_bench.cold.probe ORDER`, with an order as JSON: {"probe": NAME, ...}. It prints
`prepared`, waits for a line on standard input, and prints its seconds and bytes as JSON. Imports
nothing heavy before it is asked for.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pixpod.timeline import since_process_start
from pixpod_bench.cold.plain_read import PlainRead, ReadPlan

PREPARED = "prepared"

Order = Mapping[str, Any]
"""Any: a JSON document."""

Outcome = Mapping[str, object]


def main() -> int:
    order = json.loads(sys.argv[1])
    run = PROBES[order["probe"]](order)
    sys.stdout.write(PREPARED + "\n")
    sys.stdout.flush()
    sys.stdin.readline()
    began = time.perf_counter()
    outcome = run()
    document = {"seconds": time.perf_counter() - began, **outcome}
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
    return 0


def _read(order: Order) -> Callable[[], Outcome]:
    paths, plan = _what_to_read(order)
    return lambda: {"size_bytes": PlainRead(paths, plan).wait()}


def _load(order: Order) -> Callable[[], Outcome]:
    """The loader has loaded a tiny model before: what it imports, it has imported."""
    from pixpod.engine.device import prepare_device
    from pixpod.engine.loading.pipelines import silence_libraries
    from pixpod_bench.cold.case import Case
    from pixpod_bench.cold.loaders import LOADERS

    case, load = Case.from_json(order["case"]), LOADERS[order["loader"]]
    silence_libraries()
    prepare_device(case.device)
    load(case.rehearsal())
    _synchronize(case.device)
    size_bytes = sum(path.stat().st_size for path in case.paths())
    kept: object = None  # to give memory back is no part of loading

    def run() -> Outcome:
        nonlocal kept
        kept = load(case)
        _synchronize(case.device)
        return {"size_bytes": size_bytes}

    return run


def _import_and_read(order: Order) -> Callable[[], Outcome]:
    """What no worker can do without: its libraries, and its bytes, side by side."""
    paths, plan = _what_to_read(order)

    def run() -> Outcome:
        reading = PlainRead(paths, plan)
        import_libraries(order["pipeline"])
        return {"size_bytes": reading.wait()}

    return run


def _pinned_copy(order: Order) -> Callable[[], Outcome]:
    """What the bus gives: one page-locked gigabyte to the card, four times."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device="cuda")
    target.copy_(source)
    torch.cuda.synchronize()

    def run() -> Outcome:
        for _ in range(4):
            target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        return {"size_bytes": 4 * len(source)}

    return run


def _stock_image(order: Order) -> Callable[[], Outcome]:
    """A process that does what the documentation of diffusers says, up to its first image.

    Nothing of ours is imported meanwhile.
    """
    clock = since_process_start()

    def run() -> Outcome:
        import diffusers
        import torch

        device = order["device"]
        pipe = getattr(diffusers, order["pipeline"]).from_pretrained(
            order["folder"], dtype=getattr(torch, order["dtype"]), local_files_only=True
        )
        pipe.to(device)
        _synchronize(device)
        ready_s = clock()
        pipe.set_progress_bar_config(disable=True)
        pipe(**order["call"])
        return {"marks": {"ready": ready_s, "first image": clock()}}

    return run


def import_libraries(pipeline: str) -> None:
    """What a worker imports that others have written, without anything of ours: the SDK too, and
    that without the second that it spends to find the name of the processor.
    """
    from types import ModuleType

    import torch

    stand_in = ModuleType("cpuinfo")
    stand_in.get_cpu_info = lambda: {"brand_raw": ""}  # type: ignore[attr-defined]
    sys.modules["cpuinfo"] = stand_in
    import diffusers
    import pydantic  # noqa: F401
    import runpod  # noqa: F401
    import torchao.quantization  # noqa: F401
    import transformers  # noqa: F401
    from torchao.prototype.safetensors import safetensors_support  # noqa: F401

    getattr(diffusers, pipeline)
    torch.ones(1).add(1).item()


def _what_to_read(order: Order) -> tuple[list[Path], ReadPlan]:
    return [Path(path) for path in order["paths"]], ReadPlan(**order["plan"])


def _synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


PROBES: Mapping[str, Callable[[Order], Callable[[], Outcome]]] = {
    "read": _read,
    "load": _load,
    "import_and_read": _import_and_read,
    "pinned_copy": _pinned_copy,
    "stock_image": _stock_image,
}


if __name__ == "__main__":
    sys.exit(main())
