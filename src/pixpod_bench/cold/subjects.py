"""What is run in turns, part by part, and the targets: which ratio should be how large."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pixpod.catalog import Precision
from pixpod.weights.layout import PIPELINE_CLASS
from pixpod_bench.cold.boots import boot_to_image, boot_to_job_take, boot_to_ready
from pixpod_bench.cold.case import Case, catalog_for
from pixpod_bench.cold.plain_read import ReadPlan
from pixpod_bench.cold.processes import ROOT, run_code, run_probe, run_whole_probe
from pixpod_bench.cold.runs import Run, Target

PLAIN_READ = "plain read"
WORKER = "handler.py to ready"
BESIDE = "imports and plain read, side by side"
TAKES_JOBS = "handler.py to taking jobs"
CLASSES = "torch and the classes of diffusers"
OURS, STOCK = "ours", "stock diffusers"

PROMPT = "a red circle on a blue background"

MAIN_LOADERS = (PLAIN_READ, "ours", "from_pretrained")
"""Those with targets: run with every cache. The others are compared with the smallest only."""

OTHER_LOADERS = (
    *("ours, sizes only", "ours, sha256"),
    *("from_pretrained, device_map", "safetensors mmap", "safetensors pread"),
    *("fastsafetensors", "runai-model-streamer", "instanttensor"),
)

TARGETS = (
    Target(
        title="(a) our loader's GB/s over a plain read's",
        above=PLAIN_READ,
        below="ours",
        limit=0.85,
        at_least=True,
    ),
    Target(
        title="(a) our loader's GB/s over from_pretrained's",
        above="from_pretrained",
        below="ours",
        limit=2.0,
        at_least=True,
    ),
    Target(
        title="(b) worker to ready over imports and read side by side",
        above=WORKER,
        below=BESIDE,
        limit=1.15,
        at_least=False,
    ),
    Target(
        title="(c) worker to taking jobs over imports alone",
        above=TAKES_JOBS,
        below=CLASSES,
        limit=1.2,
        at_least=False,
    ),
)


def plain_reads(case: Case, plans: Mapping[str, ReadPlan]) -> dict[str, Run]:
    paths = [str(path) for path in case.paths()]
    return {
        name: _probe({"probe": "read", "paths": paths, "plan": _plain(plan)})
        for name, plan in plans.items()
    }


def loaders(case: Case, names: Sequence[str], plan: ReadPlan) -> dict[str, Run]:
    """Loaders alone, after their imports; PLAIN_READ among the names is read by `plan`."""
    found: dict[str, Run] = {}
    for name in names:
        if name == PLAIN_READ:
            found |= plain_reads(case, {PLAIN_READ: plan})
        else:
            found[name] = _probe({"probe": "load", "case": case.as_json(), "loader": name})
    return found


def whole_processes(case: Case, plan: ReadPlan) -> dict[str, Run]:
    """From exec to ready, against what no worker can do without."""
    pipeline = PIPELINE_CLASS[catalog_for(case.device)[case.model].family]
    order = {
        "probe": "import_and_read",
        "paths": [str(path) for path in case.paths()],
        "plan": _plain(plan),
        "pipeline": pipeline,
    }
    return {
        WORKER: lambda before: boot_to_ready(case, before),
        BESIDE: lambda before: run_whole_probe(order, before),
    }


def first_images(case: Case, call: Mapping[str, object]) -> dict[str, Run]:
    """Whole processes up to an image of the model's default size, in `call`'s steps."""
    spec, weights = catalog_for(case.device)[case.model], case.weights()
    default = spec.precision.get(case.device, Precision.BFLOAT16)
    is_float8 = Precision.FLOAT8_DYNAMIC in (weights.precision, default)
    size = {"width": spec.defaults.width, "height": spec.defaults.height}
    order = {
        "probe": "stock_image",
        "pipeline": PIPELINE_CLASS[spec.family],
        "folder": str(weights.folder),
        "dtype": Precision.BFLOAT16 if is_float8 else default,
        "device": case.device,
        "call": {"prompt": PROMPT, **size, **call},
    }
    return {
        OURS: lambda before: boot_to_image(case, {"prompt": PROMPT, **call}, before),
        STOCK: lambda before: run_whole_probe(order, before),
    }


def job_takes() -> dict[str, Run]:
    """The tiny models that ship, as the platform would start them."""
    settings = {"PIXPOD_WEIGHTS_DIR": str(ROOT / "model_cache"), "PIXPOD_DEVICE": "cpu"}
    return {
        TAKES_JOBS: lambda before: boot_to_job_take(settings, before),
        CLASSES: _code(f"import torch; {_PIPELINES}", {}),
    }


_PIPELINES = (
    "from diffusers import FluxPipeline, StableDiffusionXLPipeline, StableDiffusionPipeline"
)
_STAND_IN = (
    "import sys, types; m = types.ModuleType('cpuinfo'); "
    "m.get_cpu_info = lambda: {'brand_raw': ''}; sys.modules['cpuinfo'] = m; import runpod"
)


@contextmanager
def imports() -> Iterator[dict[str, Run]]:
    """Whole processes that import and end: where the seconds before the first byte go."""
    with tempfile.TemporaryDirectory() as empty:
        no_bytecode = {"PYTHONPYCACHEPREFIX": empty, "PYTHONDONTWRITEBYTECODE": "1"}
        yield {
            "python": _code("pass", {}),
            "torch": _code("import torch", {}),
            CLASSES: _code(f"import torch; {_PIPELINES}", {}),
            f"{CLASSES}, no bytecode": _code(f"import torch; {_PIPELINES}", no_bytecode),
            "runpod": _code("import runpod", {}),
            "runpod, cpuinfo stood in for": _code(_STAND_IN, {}),
            "pixpod.bootstrap": _code("import pixpod.bootstrap", {}),
        }


def _probe(order: Mapping[str, object]) -> Run:
    return lambda before: run_probe(order, before)


def _code(code: str, extra: Mapping[str, str]) -> Run:
    return lambda before: run_code(code, extra, before)


def _plain(plan: ReadPlan) -> dict[str, int]:
    return {"threads": plan.threads, "block_bytes": plan.block_bytes}
