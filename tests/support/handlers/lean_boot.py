"""A worker in a process of its own, whose imports tests look at: `lean_boot.py ORDER`.

ORDER is JSON: `jobs` are run one after the other, and `compiles` says whether the first one is run
once more with the denoiser's blocks compiled. With `imports_all`, the libraries are imported
beforehand in the plain way. The environment is a worker's. Prints JSON.
"""

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "src"))

from pixpod.bootstrap import build_worker
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.imports.deferral import has_run
from pixpod.settings import Settings, keep_hub_offline

NOWHERE = CompiledStore(Path("/nonexistent"))


def main() -> None:
    order = json.loads(sys.argv[1])
    keep_hub_offline(os.environ)
    logging.disable(logging.WARNING)
    if order.get("imports_all"):
        import diffusers  # noqa: F401
        import torch._dynamo  # noqa: F401
        import torchao.quantization  # noqa: F401
        import transformers  # noqa: F401
    sys.stdout.write(json.dumps(asyncio.run(run(order))) + "\n")


async def run(order: dict[str, Any]) -> dict[str, Any]:
    worker = build_worker(Settings.from_env(os.environ))
    worker.start()
    jobs = [{"id": f"job-{index}", "input": job} for index, job in enumerate(order["jobs"])]
    outcomes = []
    for job in jobs:
        outcomes.append({"reply": reduced(await worker.handle(job)), **imported()})
    if order.get("compiles"):
        name = jobs[0]["input"]["model"]
        engine: Any = worker.engine
        modes = compile_denoiser(engine.loader.load(name).result())
        again = await worker.handle({**jobs[0], "id": "compiled"})
        outcomes.append({"reply": reduced(again), "modes": modes, **imported()})
    return {"outcomes": outcomes}


def reduced(reply: dict[str, Any]) -> dict[str, Any]:
    if "error" in reply:
        return {"error": reply["error"]}
    return {"images": [image["sha256"] for image in reply["images"]], "steps": reply["steps"]}


def imported() -> dict[str, Any]:
    """Imports by now: packages outside the standard library, and what is deferred."""
    packages = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
    deferred = [name for name, module in sys.modules.items() if module and not has_run(module)]
    return {"packages": sorted(packages), "deferred": sorted(deferred)}


def compile_denoiser(model: Any) -> dict[str, str]:
    from pixpod.engine.compilation.compile import compile_model

    compilation = compile_model(model.loaded, NOWHERE, backend="eager")
    return dict(compilation.modes)


if __name__ == "__main__":
    main()
