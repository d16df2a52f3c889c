"""The emulator's house rules that an import or a call can break, read from the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SRC = ROOT / "src"

ROOMS = {"jobs", "workers", "api", "command_line"}

LAYERS = (
    {*ROOMS, "", "behaviour", "errors", "faults", "file_lock", "ids", "sdk_text", "wake"},
    {"api.api_error", "api.cors", "jobs.job"},
    {"workers.billing", "workers.output", "workers.reaper", "workers.state"},
    {
        "command_line.logs",
        "command_line.problems",
        "command_line.project",
        "command_line.state_dir",
    },
    {"api.fault_injection", "api.metrics", "hazards", "jobs.lifecycle", "settings"},
    {"jobs.store", "workers.process"},
    {"jobs.queue", "jobs.sqlite_store", "jobs.webhooks"},
    {"workers.environ", "workers.scaling", "workers.session"},
    {"workers.watchdog"},
    {"workers.fleet"},
    {"api.limits", "api.wire"},
    {"api.gateway", "api.openapi"},
    {"api.client_api", "api.home_page", "api.not_emulated", "api.snapshot", "api.worker_api"},
    {"api.admin_api"},
    {"api.server"},
    {"emulator"},
    {"command_line.config_file", "command_line.hub_file", "command_line.hub_report", "testing"},
    {"command_line.hub_run", "command_line.welcome", "pytest_plugin"},
    {"command_line.flags", "command_line.reload"},
    {"command_line.cli"},
    {"__main__"},
)
"""A module imports from layers above it in this list only; a new one is given its place here."""

DECIDING = {
    *("behaviour", "faults", "api.limits", "jobs.job", "jobs.lifecycle", "jobs.store"),
    *("workers.billing", "workers.scaling", "workers.watchdog"),
}
HOMES = {
    "sqlite3": {"jobs.sqlite_store"},
    "fcntl": {"file_lock"},
    "prometheus_client": {"api.metrics"},
    "argparse": {"command_line.cli", "command_line.flags"},
    "time": {"emulator", "command_line.hub_run", "testing"},
}
"""Libraries that few may know; everybody else is given a clock."""

READ_THE_ENVIRONMENT = ["command_line.cli", "emulator"]
SPEAK_TO_THE_TERMINAL = ["command_line.cli"]
CATCH_ALL = ["api.server", "emulator", "jobs.webhooks"]
OTHERS = {"pixpod", "runpod", "torch", "diffusers", "numpy", "PIL"}
SQL = re.compile(r"\b(SELECT\s|INSERT INTO|UPDATE\s+\w+\s+SET|DELETE FROM|CREATE TABLE|PRAGMA)")


def trees_of(package):
    folder = SRC / package
    return {
        name_in(folder, path): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.py"))
        if "build" not in path.parts  # setuptools' copy, while a wheel is made
    }


def name_in(folder, path):
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


TREES = trees_of("runpod_emulator")


def imports(tree):
    """Full names of all modules that are imported, wherever in the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield node.module
            if node.module.startswith("runpod_emulator"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree):
    names = (name.partition(".") for name in imports(tree))
    own = {module for package, _, module in names if package == "runpod_emulator"}
    return own & set(TREES) - ROOMS - {""}


def libraries(tree):
    return {name.split(".")[0] for name in imports(tree)}


def calls_and_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Name):
            yield node.id


def layer_of(name):
    return next(index for index, layer in enumerate(LAYERS) if name in layer)


def modules_with(*names):
    return [name for name, tree in TREES.items() if set(names) & set(calls_and_names(tree))]


def test_each_module_has_one_layer():
    placed = [name for layer in LAYERS for name in layer]
    assert len(placed) == len(set(placed))
    assert set(TREES) == set(placed), "give each new module its place in LAYERS"


@pytest.mark.parametrize("name", TREES)
def test_imports_point_one_way(name):
    for imported in own_imports(TREES[name]):
        assert layer_of(imported) < layer_of(name), f"{name} imports {imported}"


@pytest.mark.parametrize("name", TREES)
def test_emulator_knows_nothing_of_what_runs_on_it(name):
    assert not libraries(TREES[name]) & OTHERS


def test_worker_knows_nothing_of_the_emulator():
    handler = ast.parse((ROOT / "handler.py").read_text(encoding="utf-8"))
    for tree in (handler, *trees_of("pixpod").values()):
        assert "runpod_emulator" not in libraries(tree)


@pytest.mark.parametrize("name", sorted(DECIDING))
def test_deciding_module_holds_no_socket_no_clock_and_no_file(name):
    assert not libraries(TREES[name]) & {"aiohttp", "asyncio", "os", "socket", "sqlite3", "time"}


@pytest.mark.parametrize("library", HOMES)
def test_library_stays_at_home(library):
    homes = {name for name, tree in TREES.items() if library in libraries(tree)}
    assert homes == HOMES[library]


def test_sql_is_in_one_place():
    with_sql = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.search(node.value)
    }
    assert with_sql == {"jobs.sqlite_store"}


def test_environment_is_read_at_the_edge():
    assert modules_with("os.environ", "os.getenv", "environb") == READ_THE_ENVIRONMENT


def test_terminal_is_written_to_at_the_edge():
    assert modules_with("print") == []
    speaking = modules_with("sys.stdout.write", "sys.stderr.write", "sys.stdout", "sys.stderr")
    assert speaking == SPEAK_TO_THE_TERMINAL


def test_catch_alls_are_few_and_log_what_they_caught():
    broad = {
        name: handler
        for name, tree in TREES.items()
        for handler in ast.walk(tree)
        if isinstance(handler, ast.ExceptHandler)
        and (handler.type is None or ast.unparse(handler.type) in ("Exception", "BaseException"))
    }
    assert sorted(broad) == CATCH_ALL
    assert all("logger.exception" in calls_and_names(handler) for handler in broad.values())


@pytest.mark.parametrize("name", TREES)
def test_module_says_what_it_is_for(name):
    assert ast.get_docstring(TREES[name])


def test_names_that_say_nothing_are_not_used():
    assert not {"utils", "helpers", "constants", "common", "misc", "manager"} & set(TREES)


def test_importing_the_emulator_starts_nothing_and_needs_none_of_what_runs_on_it():
    code = (
        "import sys, threading; sys.path.insert(0, 'src'); import runpod_emulator.command_line.cli;"
        f"print(sorted({OTHERS!r} & sys.modules.keys()), threading.active_count())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (run.stdout, run.stderr) == ("[] 1\n", "")
