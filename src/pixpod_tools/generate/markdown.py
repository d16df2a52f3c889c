"""Markdown that several pages have in common."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; bars inside cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def code(values: Iterable[object]) -> str:
    """Return values as code, with commas between them."""
    return ", ".join(f"`{value}`" for value in values)


def generated_from(*sources: str) -> str:
    """Return the last line of a generated page."""
    names = " and ".join(sources)
    return f"\n<!-- Generated from {names} by `scripts/generate`. -->\n"
