"""The house rules that an import or a call can break, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"

STANDARD_LIBRARY_ONLY = {
    "errors",
    "job",
    "logs",
    "timeline",
    "engine.base",
    "engine.compilation.store",
    "engine.device_probe",
    "engine.execution.oom_fallbacks",
    "engine.memory.host",
    "engine.memory.residency",
    "engine.memory.sharing",
    "engine.precision.precision",
    "engine.scheduling.batching",
    "engine.scheduling.request_queue",
    "weights.layout",
    "weights.manifest",
}
HEAVY = {"torch", "diffusers", "transformers", "torchao", "safetensors", "accelerate", "peft"}
CONCRETE = {"engine.engine", "engine.fake", "outputs.s3_storage", "bootstrap"}


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


def test_policy_modules_need_the_standard_library_only():
    foreign = {
        name: found
        for name in STANDARD_LIBRARY_ONLY
        if (found := {each.split(".")[0] for each in imports(TREES[name])} - {"pixpod"})
        - sys.stdlib_module_names
    }
    assert not foreign


def test_heavy_libraries_stay_in_the_engine_and_in_fakes():
    found = {
        name: heavy
        for name, tree in TREES.items()
        if not name.startswith(("engine", "testing")) or name.startswith("engine.scheduling")
        if (heavy := {each.split(".")[0] for each in imports(tree, skip=for_types(tree))} & HEAVY)
    }
    assert not found


def for_types(tree):
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }


def test_worker_knows_no_concrete_engine_or_store():
    assert not own_imports(TREES["serving.worker"]) & CONCRETE


def calls_and_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Name):
            yield node.id


def users_of(names):
    return [name for name, tree in TREES.items() if names & set(calls_and_names(tree))]


def test_environment_is_read_in_one_place():
    readers = users_of({"os.environ", "os.getenv", "environ", "getenv"})
    assert [name for name in readers if not name.startswith("testing.")] == ["settings"]


def test_standard_output_is_left_to_results():
    assert users_of({"print", "sys.stdout", "sys.__stdout__"}) == []


def test_nobody_waits_for_the_whole_device():
    """It breaks the capture of a graph on another thread (`engine.streams`)."""
    assert users_of({"torch.cuda.synchronize", "cuda.synchronize"}) == []


def test_there_is_one_catch_all():
    broad = [
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or {"Exception", "BaseException"} & set(calls_and_names(node.type)))
    ]
    assert broad == ["serving.worker"]


def test_modules_say_what_they_are_for():
    assert all(ast.get_docstring(tree) for tree in TREES.values())


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
