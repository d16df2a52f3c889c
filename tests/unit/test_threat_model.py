"""`docs/threat-model.md` names tests that there are, and fills all its columns."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
HEADER = ("asset", "attacker", "entry", "what holds it", "what does not hold")
TEST = re.compile(r"`([\w/]+\.py)::(?:(\w+)::)?(test_\w+)`")


def cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.split("|")[1:-1])


def rows() -> Iterator[tuple[str, ...]]:
    for table in PAGE.split("\n\n"):
        lines = table.splitlines()
        if cells(lines[0]) == HEADER:
            yield from map(cells, lines[2:])


ROWS = tuple(rows())
ATTACKERS = set(re.findall(r"^\| (\w+) \| [^|]+ \|$", PAGE, re.MULTILINE)) - {"attacker"}


def functions(path: Path) -> set[tuple[str, str]]:
    """Return the tests of a file, each with its class."""
    found, parent = set(), ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if name := re.match(r"class (\w+)", line):
            parent = name[1]
        elif name := re.match(r"( *)(?:async )?def (test_\w+)", line):
            found.add((parent if name[1] else "", name[2]))
    return found


def test_tables_are_found():
    assert len(ROWS) >= 40
    assert {"caller", "server", "reader", "writer", "supplier", "neighbour"} == ATTACKERS


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0][:30]}, {row[2][:40]}" for row in ROWS])
def test_row_is_complete_and_its_tests_exist(row):
    assert len(row) == len(HEADER)
    assert all(row[:4])
    assert set(row[1].split(", ")) <= ATTACKERS
    tests = TEST.findall(row[3])
    assert tests, "a claim needs a test"
    for file, parent, name in tests:
        assert (parent, name) in functions(ROOT / "tests" / file)


def test_what_looks_like_a_test_is_read_as_one():
    assert len(TEST.findall(PAGE)) == PAGE.count("::test_")


def test_each_attacker_attacks():
    assert {attacker for row in ROWS for attacker in row[1].split(", ")} == ATTACKERS
