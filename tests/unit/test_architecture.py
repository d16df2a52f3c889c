"""The house rules that an import or a call can break, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"

LAYERS = (
    {"", "errors", "job", "logs", "progress", "renewal", "timeline"},
    {"catalog", "contract", "deadline", "encoding", "environment", "pricing", "engine.base"},
    {"disk", "json_schema", "manifest", "problems", "storage", "engine.device_probe"},
    {
        "engine.compiled.regions",
        "engine.memory.host",
        "engine.memory.ladder",
        "engine.numerics.attention",
        "engine.streams",
    },
    {"hub", "prefetch", "rules", "s3_settings", "engine.drawing.batching", "engine.numerics.cards"},
    {"engine.compiled.store", "engine.memory.parking", "engine.numerics.quantization"},
    {
        "held_jobs",
        "engine.compiled.calls",
        "engine.drawing.device_queue",
        "engine.numerics.precision",
    },
    {"payload", "s3_storage", "settings", "engine.drawing.warmup", "engine.fake", "engine.weights"},
    {"engine.compiled.recording"},
    {
        "engine.device",
        "engine.loading.binding",
        "engine.loading.device_memory",
        "engine.memory.footprints",
        "engine.sources.base",
    },
    {
        "engine.loading.components",
        "engine.memory.needs",
        "engine.sources.copying",
        "engine.sources.local_copies",
    },
    {"engine.sources.baked", "engine.sources.hub", "engine.sources.platform_cache"},
    {"engine.loading.pipelines", "engine.sources.volume"},
    {
        "engine.compiled.compilation",
        "engine.drawing.families",
        "engine.drawing.turbo",
        "engine.sources.locator",
    },
    {"engine.drawing.prompt_cache", "engine.memory.residency", "engine.memory.sharing"},
    {"engine.memory.placement", "engine.sources"},
    {"engine.drawing.drawer", "engine.loading.variants"},
    {"engine.loading.model_loader"},
    {"engine.diffusion"},
    {"worker"},
    {"bootstrap", "local_run", "runpod_sdk"},
)
"""A module imports from layers above it in this list only; a new one is given its place here."""

STANDARD_LIBRARY_ONLY = {
    "errors",
    "job",
    "logs",
    "manifest",
    "timeline",
    "engine.base",
    "engine.compiled.store",
    "engine.device_probe",
    "engine.drawing.batching",
    "engine.drawing.device_queue",
    "engine.memory.host",
    "engine.memory.ladder",
    "engine.memory.residency",
    "engine.memory.sharing",
    "engine.numerics.cards",
    "engine.numerics.precision",
    "engine.weights",
}
HEAVY = {"torch", "diffusers", "transformers", "torchao", "safetensors", "accelerate", "peft"}
MAY_BE_HEAVY = (
    "engine.compiled.calls",
    "engine.compiled.compilation",
    "engine.compiled.recording",
    "engine.compiled.regions",
    "engine.device",
    "engine.drawing.drawer",
    "engine.drawing.families",
    "engine.drawing.prompt_cache",
    "engine.drawing.turbo",
    "engine.loading.binding",
    "engine.loading.components",
    "engine.loading.device_memory",
    "engine.loading.pipelines",
    "engine.loading.variants",
    "engine.memory.parking",
    "engine.memory.placement",
    "engine.numerics.attention",
    "engine.numerics.quantization",
    "engine.streams",
)
CONCRETE = {"engine.diffusion", "engine.fake", "s3_storage", "bootstrap"}


def name_of(path):
    parts = path.relative_to(SRC / "pixpod").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


TREES = {
    name_of(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((SRC / "pixpod").rglob("*.py"))
}
ROOMS = {name for name, tree in TREES.items() if len(tree.body) == 1}
"""Packages with a docstring and nothing else."""


def imports(tree, *, skip=frozenset()):
    """Full names of all modules that are imported, wherever in the module."""
    for node in ast.walk(tree):
        if node in skip:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree):
    names = (
        name.removeprefix("pixpod").removeprefix(".")
        for name in imports(tree)
        if name.split(".")[0] == "pixpod"
    )
    return {name for name in names if name in TREES.keys() - ROOMS}


def layer_of(name):
    return next(index for index, layer in enumerate(LAYERS) if name in layer)


def test_each_module_has_one_layer():
    placed = [name for layer in LAYERS for name in layer]
    assert len(placed) == len(set(placed))
    known = {name for name in TREES.keys() - ROOMS if not name.startswith("baking")}
    assert known == set(placed), "give each new module its place in LAYERS"


@pytest.mark.parametrize("name", TREES)
def test_imports_point_one_way(name):
    if name.startswith("baking"):
        assert "worker" not in own_imports(TREES[name])
        return
    for imported in own_imports(TREES[name]):
        assert layer_of(imported) < layer_of(name), f"{name} imports {imported}"


@pytest.mark.parametrize("name", sorted(STANDARD_LIBRARY_ONLY))
def test_module_needs_the_standard_library_only(name):
    foreign = {each.split(".")[0] for each in imports(TREES[name])} - {"pixpod"}
    assert foreign <= sys.stdlib_module_names


@pytest.mark.parametrize("name", TREES)
def test_heavy_libraries_stay_with_the_device(name):
    if name in MAY_BE_HEAVY or name.startswith("baking"):
        return
    for_types = {
        inner
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = {each.split(".")[0] for each in imports(TREES[name], skip=for_types)}
    assert not found & HEAVY


def test_worker_knows_no_concrete_engine_or_store():
    assert not own_imports(TREES["worker"]) & CONCRETE


def calls_and_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Name):
            yield node.id


@pytest.mark.parametrize("name", sorted(TREES.keys() - {"settings"}))
def test_environment_is_read_in_one_place(name):
    used = set(calls_and_names(TREES[name]))
    assert not {"os.environ", "os.getenv", "environ", "getenv"} & used


@pytest.mark.parametrize("name", sorted(TREES.keys() - {"baking.cli"}))
def test_standard_output_is_left_to_results(name):
    assert not {"print", "sys.stdout", "sys.__stdout__"} & set(calls_and_names(TREES[name]))


@pytest.mark.parametrize("name", TREES)
def test_nobody_waits_for_the_whole_device(name):
    """It breaks what another thread is recording (`engine.streams`)."""
    assert not {"torch.cuda.synchronize", "cuda.synchronize"} & set(calls_and_names(TREES[name]))


def test_there_is_one_catch_all():
    broad = [
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or {"Exception", "BaseException"} & set(calls_and_names(node.type)))
    ]
    assert broad == ["worker"]


@pytest.mark.parametrize("name", TREES)
def test_module_says_what_it_is_for(name):
    assert ast.get_docstring(TREES[name])


def test_names_that_say_nothing_are_not_used():
    empty = {"utils", "helpers", "constants", "common", "misc", "manager"}
    assert not empty & {part for name in TREES for part in name.split(".")}


def test_worker_is_wired_without_heavy_imports():
    code = (
        "import sys, threading; sys.path[:0] = ['src', '.'];"
        "import pixpod.bootstrap, handler;"
        f"heavy = {HEAVY | {'boto3', 'botocore', 'runpod'}!r} & sys.modules.keys();"
        "print(sorted(heavy), threading.active_count())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (run.stdout, run.stderr) == ("[] 1\n", "")
