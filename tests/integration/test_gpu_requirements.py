"""The packages that requirements-gpu.txt names are those that scripts/gpu imports."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements-gpu.txt"
LIST_MODULES = """
import json, pkgutil, sys
import pixpod.engine, pixpod_bench.gpu
for package in (pixpod.engine, pixpod_bench.gpu):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        __import__(found.name)
print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.startswith("pixpod")]))
"""


def imports_at_the_top(path: Path) -> Iterator[str]:
    """Names of the packages that a module needs to be imported."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module.partition(".")[0]


def imported() -> set[str]:
    """The distributions that the command and the engine import."""
    run = [sys.executable, "-c", LIST_MODULES]
    files = json.loads(subprocess.run(run, capture_output=True, check=True, text=True).stdout)
    names = {name for file in files for name in imports_at_the_top(Path(file))}
    distributions = packages_distributions()
    others = {name for name in names - sys.stdlib_module_names if not name.startswith("pixpod")}
    return {distributions[name][0].lower().replace("_", "-") for name in others}


def named() -> set[str]:
    """Those that are pinned, and those that the machine already has."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    there = comment.partition("already has")[2].rstrip(".").replace(" and ", ", ")
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    return pinned | {name.strip() for name in there.split(",")}


def test_nothing_is_imported_that_is_not_named():
    found = imported()
    assert {"torch", "diffusers", "pydantic"} <= found
    assert found <= named()
