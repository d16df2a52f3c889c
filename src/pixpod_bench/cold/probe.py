"""One measured run: a fresh process that prepares, waits for a line, runs, and prints one line.

`python -m pixpod_bench.cold.probe ORDER`, with an order as JSON: {"probe": NAME, ...}. It prints
`prepared`, waits for a line on standard input, and prints its seconds and bytes as JSON. Imports
nothing heavy before it is needed.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pixpod.timeline import since_process_start
from pixpod_bench.cold.plain_read import PlainRead

PREPARED = "prepared"

Order = Mapping[str, Any]
"""Any: a JSON document."""

Outcome = Mapping[str, object]


def main() -> int:
    order = json.loads(sys.argv[1])
    with ExitStack() as stack:
        run = PROBES[order["probe"]](order, stack)
        sys.stdout.write(PREPARED + "\n")
        sys.stdout.flush()
        sys.stdin.readline()
        began = time.perf_counter()
        outcome = run()
        document = {"seconds": time.perf_counter() - began, **outcome}
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()
    return 0


def _read(order: Order, stack: ExitStack) -> Callable[[], Outcome]:
    paths = [Path(path) for path in order["paths"]]
    return lambda: {"size_bytes": PlainRead(paths).wait()}


def _load(order: Order, stack: ExitStack) -> Callable[[], Outcome]:
    """Prepare to load a model; load a tiny one first, so that the loader's imports are done."""
    from pixpod.engine.loading.model_loading import silence_libraries
    from pixpod_bench.cold.case import Case
    from pixpod_bench.cold.loaders import LOADERS

    case, load = Case.from_json(order["case"]), LOADERS[order["loader"]]
    silence_libraries()
    with ExitStack() as rehearsal:
        load(case.rehearsal(), rehearsal)
    _synchronize(case.device)
    size_bytes = case.size_bytes()
    kept: object = None  # freeing memory is no part of loading

    def run() -> Outcome:
        nonlocal kept
        kept = load(case, stack)
        _synchronize(case.device)
        return {"size_bytes": size_bytes}

    return run


def _import_and_read(order: Order, stack: ExitStack) -> Callable[[], Outcome]:
    """Do what every worker needs: import its libraries and read its bytes at the same time."""
    paths = [Path(path) for path in order["paths"]]

    def run() -> Outcome:
        reading = PlainRead(paths)
        _import_libraries(order["pipeline"])
        return {"size_bytes": reading.wait()}

    return run


def _import_classes(order: Order, stack: ExitStack) -> Callable[[], Outcome]:
    def run() -> Outcome:
        import torch  # noqa: F401
        from diffusers import (  # noqa: F401
            FluxPipeline,
            StableDiffusionPipeline,
            StableDiffusionXLPipeline,
        )

        return {}

    return run


def _stock_image(order: Order, stack: ExitStack) -> Callable[[], Outcome]:
    """Generate a first image as diffusers' documentation describes; import nothing of pixpod."""
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


def _import_libraries(pipeline: str) -> None:
    """Import a worker's libraries, without the second in which the SDK finds the name of the
    processor.
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


def _synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


PROBES: Mapping[str, Callable[[Order, ExitStack], Callable[[], Outcome]]] = {
    "read": _read,
    "load": _load,
    "import_and_read": _import_and_read,
    "import_classes": _import_classes,
    "stock_image": _stock_image,
}


if __name__ == "__main__":
    sys.exit(main())
