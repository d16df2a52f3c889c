"""The tables under docs/conformance name tests and switches that exist, and forget no switch."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from runpod_emulator.behaviour import Behaviour

ROOT = Path(__file__).resolve().parents[3]
TABLES = sorted((ROOT / "docs" / "conformance").glob("*.md"))
TESTS = {path.name: path for path in (ROOT / "tests").glob("**/emulator/test_*.py")}
MARKS = {"verified", "documented", "reported", "inferred", "uncertain"}
KINDS = (ast.FunctionDef, ast.AsyncFunctionDef)
SWITCHES = {field.name for field in fields(Behaviour)}


def rows():
    for table in TABLES:
        for line in table.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if len(cells) == 5 and cells[0] != "behaviour" and set(line) - set("|- "):
                yield pytest.param(cells, id=cells[0][:60])


ROWS = list(rows())


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, KINDS)}


def test_tables_are_found():
    assert len(ROWS) > 150


@pytest.mark.parametrize("cells", ROWS)
def test_row_has_a_mark_and_tests_that_there_are(cells):
    _, source, mark, tests, _ = cells
    assert source
    assert mark.split()[0].rstrip(",;") in MARKS
    name_of_file = ""
    for test in re.split(r"[,;]\s*", tests.replace("`", "")):
        file, _, name = test.rpartition("::")
        name_of_file = file or name_of_file
        assert re.sub(r"\[.*", "", name) in functions(TESTS[name_of_file]), test


def switches_of(cells):
    return set(re.findall(r"[a-z_]+", cells[4]))


@pytest.mark.parametrize("cells", ROWS)
def test_row_names_switches_that_there_are(cells):
    assert switches_of(cells) <= SWITCHES


def test_no_switch_is_forgotten():
    assert {name for row in ROWS for name in switches_of(row.values[0])} == SWITCHES
