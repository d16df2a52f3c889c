"""Imports of a worker before its first image, in processes of its own.

Each feature that needs more is tried after a boot that has imported nothing of it, and gives the
images of a process that imported all libraries in the plain way.
"""

import importlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pixpod.engine.imports.deferral import imported_names
from pixpod.engine.imports.libraries import DIFFUSERS, TORCHAO, TRANSFORMERS_PLACES, lean_imports
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod_tools.bake.cli import main as bake

BOOT = Path(__file__).resolve().parents[1] / "support" / "handlers" / "lean_boot.py"
TINY = SOURCE_WEIGHTS_DIR / "tiny"
LIMIT_S = 300

CALL = {"prompt": "a red circle on a blue background", "seed": 7, "num_inference_steps": 4}
FLUX = {"model": "flux-tiny", **CALL}
SDXL = {"model": "sdxl-tiny", **CALL}
WITH_LORA = {**FLUX, "loras": [{"source": "flux-frame"}]}
JOBS = [FLUX, SDXL, {**FLUX, "quality": "turbo", "num_inference_steps": 8}, WITH_LORA]

LISTED = """
PIL _brotli _cares _cffi_backend aiodns aiohappyeyeballs aiohttp aiosignal annotated_types anyio
attr backports brotli certifi chardet charset_normalizer colorama diffusers filelock frozenlist
h11 httpcore2 httpx2 huggingface_hub idna jinja2 markupsafe multidict numpy packaging pixpod
propcache psutil pycares pydantic pydantic_core regex requests safetensors tokenizers torch
torchao torchgen tqdm transformers truststore typing_extensions typing_inspection urllib3 xxhash
yaml yarl
"""
PACKAGES = frozenset(LISTED.split())
"""Packages that may be imported before the first image. Each more makes each boot longer."""

OF_OTHERS = ("__", "_cython", "_distutils", "_remote_module", "_sysconfigdata")

COMPILER = {"torch._dynamo", "torch._inductor", "torch.distributed.tensor"}
QUANTISERS = {"torchao", "torchao.quantization"}
LISTS_OF_MODELS = {"transformers", "transformers.models", "diffusers.models.transformers"}


def boot(order, weights, **environ):
    """The outcomes of jobs in a process that `lean_boot.py` describes."""
    given = {
        **os.environ,
        "PIXPOD_WEIGHTS_DIR": str(weights),
        "PIXPOD_LORA_DIR": str(TINY / "loras"),
        "PIXPOD_DEVICE": "cpu",
        "PIXPOD_WARMUP_SIZES": "",
        "OMP_NUM_THREADS": "1",
        **environ,
    }
    ended = subprocess.run(
        [sys.executable, str(BOOT), json.dumps(order)],
        env=given,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])["outcomes"]


def third_party(packages):
    """Without modules that parts of packages and of Python add under names of their own."""
    found = {name for name in packages if not name.startswith(OF_OTHERS) and "mypyc" not in name}
    return found - {"cython_runtime"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """flux-tiny in float8 and sdxl-tiny."""
    folder = tmp_path_factory.mktemp("weights")
    for model in ("flux-tiny=float8_dynamic", "sdxl-tiny=float32"):
        source = TINY / model.partition("=")[0]
        assert bake(["--model", model, "--from", str(source), "--to", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def outcomes(weights):
    """The same jobs in a worker and in a process that imported everything; the worker's first."""
    order = {"jobs": JOBS, "compiles": True}
    with ThreadPoolExecutor() as threads:
        lean = threads.submit(boot, order, weights)
        plain = threads.submit(boot, {**order, "imports_all": True}, weights)
        return lean.result(), plain.result()


def test_first_images_import_only_what_is_listed(outcomes):
    for outcome in outcomes[0][:2]:
        assert third_party(outcome["packages"]) <= PACKAGES
        assert {*outcome["deferred"]} >= COMPILER | QUANTISERS | LISTS_OF_MODELS


def test_plain_imports_bring_more(outcomes):
    assert {"sympy", "accelerate", "peft"} <= third_party(outcomes[1][0]["packages"])
    assert outcomes[1][0]["deferred"] == []


def test_images_equal_those_of_a_process_that_imports_everything(outcomes):
    lean, plain = ([each["reply"] for each in found] for found in outcomes)
    assert lean == plain
    assert all("images" in reply for reply in lean), lean
    images = [reply["images"][0] for reply in lean[: len(JOBS)]]
    assert len({*images}) == len(JOBS)


def test_turbo_and_loras_need_no_compiler(outcomes):
    assert {*outcomes[0][len(JOBS) - 1]["deferred"]} >= COMPILER | QUANTISERS


def test_compiler_is_imported_when_it_is_asked_for(outcomes):
    compiled = outcomes[0][-1]
    assert compiled["modes"]["transformer"] == "jit"
    assert not {"torch._dynamo"} & {*compiled["deferred"]}
    assert compiled["reply"] == outcomes[0][0]["reply"]


def test_weights_are_quantised_after_a_boot_without_torchao():
    environ = {"PIXPOD_PRECISION": "flux-tiny=float8_dynamic", "PIXPOD_MODELS": "flux-tiny"}
    (converted,) = boot({"jobs": [FLUX]}, SOURCE_WEIGHTS_DIR, **environ)
    assert len(converted["reply"]["images"]) == 1
    assert not QUANTISERS & {*converted["deferred"]}


def test_process_with_these_libraries_has_times_too():
    importlib.import_module("diffusers")  # as tools do
    found = []

    @contextmanager
    def span(name):
        found.append(name)
        yield

    with lean_imports(span):
        assert found == ["torch", "pixpod"]


def test_places_are_where_the_libraries_have_these_names():
    transformers = importlib.import_module("transformers")
    for name, place in TRANSFORMERS_PLACES.items():
        module, _, found_as = place.rpartition(".")
        there = getattr(importlib.import_module(f"transformers.{module}"), found_as)
        assert getattr(transformers, name) is there, name


@pytest.mark.parametrize("package", [*DIFFUSERS, *TORCHAO[1:]])
def test_deferred_packages_have_what_their_code_imports(package):
    found = importlib.import_module(package)
    for name, place in imported_names(package).items():
        if name == "*":
            continue
        module, _, found_as = place.rpartition(".")
        there = getattr(importlib.import_module(module), found_as)
        assert getattr(found, name) is there, name


FAMILIES_CODE = """
import sys
from pixpod.engine.imports.deferral import has_run
from pixpod.engine.imports.libraries import lean_imports
from pixpod.families import FAMILIES

with lean_imports():
    from pixpod.engine.loading.model_loading import import_pipelines
    import_pipelines(FAMILIES.values())
    import transformers
    for family in FAMILIES.values():
        for component in family.components:
            if component.role == "text_encoder":
                getattr(transformers, component.class_name)
print(*sorted(name for name, module in sys.modules.items() if module and not has_run(module)))
"""


def test_pipelines_of_all_families_need_nothing_that_is_deferred():
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FAMILIES_CODE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert {*ended.stdout.splitlines()[-1].split()} >= COMPILER | QUANTISERS | LISTS_OF_MODELS


MISSED = """
import torch
from pixpod.engine.imports.libraries import has_compiler, lean_imports

with lean_imports():
    from torch._dynamo import allow_in_graph
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    @torch.compiler.disable
    def disabled(x):
        return x + 1

    @torch.compiler.disable(recursive=False)
    def partly_disabled(x):
        return x + 1

    @allow_in_graph
    def allowed(x):
        return x * 2

one = torch.ones(1)
assert disabled(one) == partly_disabled(one) == 2
assert not has_compiler()

graphs = []
def backend(graph, inputs):
    graphs.append(graph.code)
    return graph

assert torch.compile(lambda x: allowed(x) + 1, fullgraph=True, backend=backend)(one) == 3
assert has_compiler()
assert "allowed" in graphs[0], graphs
for function in (disabled, partly_disabled):
    try:
        torch.compile(lambda x: function(x) * 2, fullgraph=True, backend=backend)(one)
    except torch._dynamo.exc.Unsupported:
        continue
    raise SystemExit(f"{function.__name__} was traced")
with TransformGetItemToIndex():
    pass
"""


def test_compiler_gets_what_was_decorated_before_it_was_imported():
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MISSED], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
