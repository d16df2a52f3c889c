"""Render docs/packages.md from the docstrings of packages and the import contracts."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

from pixpod_tools.generate.markdown import generated_from, table

SOURCE = Path(__file__).parents[2]

_HEAD = """\
# Packages

Packages in `src/`, in the words of their docstrings. Only `pixpod` is in the image. Each module
says in its own docstring what it is for.

"""

_LAYERS = """
## Import directions

`scripts/check` holds the contracts of `pyproject.toml` (`[tool.importlinter]`). A package may
import those below it, none above it and none beside it:

"""

_TORCH = """\
torch and the libraries that build on it are imported in `engine/` and `testing/` only.

"""


def render() -> str:
    """Return the text of the page."""
    return (
        _HEAD
        + table(("package", "purpose"), _rows())
        + _LAYERS
        + "".join(_layers())
        + _TORCH
        + generated_from("the docstrings in src", "pyproject.toml")
    )


def _rows() -> Iterator[tuple[str, ...]]:
    for file in sorted(SOURCE.rglob("__init__.py")):
        name = ".".join(file.parent.relative_to(SOURCE).parts)
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        yield f"`{name}`", text.partition("\n\n")[0].replace("\n", " ")


def _layers() -> Iterator[str]:
    project = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in project["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers":
            lines = "\n".join(contract["layers"])
            yield f"In `{contract['containers'][0]}`:\n\n```\n{lines}\n```\n\n"
