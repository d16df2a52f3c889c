"""Writes the output of benchmarks: tables for people, then one line of JSON, and both as files."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, TypeVar

from tabulate import tabulate

from pixpod_bench.figures import Verdict
from pixpod_bench.machine import ROOT

T = TypeVar("T")

Columns = Sequence[tuple[str, Callable[[T], str]]]
"""Titles of columns, each with a function that returns a row's text."""

_VERDICT = {True: "met", False: "MISSED", None: "not measured"}


def new_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option that all benchmarks share."""
    parser = argparse.ArgumentParser(
        prog=f"scripts/{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = ROOT / "build" / name
    help_text = f"where the results go; default: build/{name}"
    parser.add_argument("--out", type=Path, metavar="DIR", default=default, help=help_text)
    return parser


def table(title: str, columns: Columns[T], rows: Iterable[tuple[str, T]], words: int = 0) -> str:
    """Return a table with one line per name and row, or nothing without rows.

    Names and the next `words` columns are aligned left, figures right.
    """
    lines = [[name, *(show(row) for _, show in columns)] for name, row in rows]
    if not lines:
        return ""
    headers = [title, *(header for header, _ in columns)]
    sides: list[Literal["left", "right"]] = ["left"] * (1 + words)
    sides += ["right"] * (len(columns) - words)
    text = tabulate(lines, headers=headers, colalign=sides, disable_numparse=True)
    return f"\n{text}\n"


def verdict_table(title: str, verdicts: Iterable[Verdict]) -> str:
    columns: Columns[Verdict] = (
        ("of", lambda each: each.subject),
        ("wanted", lambda each: f"{'>=' if each.at_least else '<='} {each.limit:g} {each.unit}"),
        ("found", lambda each: or_dash(each.value, lambda value: f"{value:.2f} {each.unit}")),
        ("", lambda each: _VERDICT[each.is_met]),
    )
    return table(title, columns, [(each.target, each) for each in verdicts], words=1)


def verdict_document(verdict: Verdict) -> dict[str, object]:
    return {**asdict(verdict), "is_met": verdict.is_met}


def listing(title: str, lines: Iterable[str]) -> str:
    """Return indented lines below a title, or nothing without lines."""
    text = "".join(f"  {line}\n" for line in lines)
    return f"\n{title}\n\n{text}" if text else ""


def or_dash(value: T | None, show: Callable[[T], str]) -> str:
    return "-" if value is None else show(value)


def gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f}"


def command_line(name: str) -> str:
    """Return the command as it was typed, for the JSON."""
    return shlex.join([f"scripts/{name}", *sys.argv[1:]])


def write_json(out: Path, name: str, document: Mapping[str, object]) -> str:
    """Write `NAME.json` and return its one line."""
    text = json.dumps(document)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return text


def publish(out: Path, name: str, document: Mapping[str, object], tables: str) -> None:
    """Write `NAME.json` and `NAME.txt`, and print both, the JSON as the last line."""
    text = write_json(out, name, document)
    (out / f"{name}.txt").write_text(tables, encoding="utf-8")
    sys.stdout.write(f"{tables}\n{text}\n")
