"""Render docs/settings.md from the table of variables."""

from pixpod.variables import VARIABLES, Variable

_HEAD = """\
# Settings

A worker is configured by environment variables. They are read once, at start. A value that cannot
be used, or an unknown name that begins with `PIXPOD_`, does not crash the worker: it answers each
job with the error `invalid_settings`, which names the variable. An empty value counts as not set.

| variable | default | meaning |
|---|---|---|
"""

_TAIL = """
Programs under `scripts/` are configured by options instead; `--help` lists them.

<!-- Generated from src/pixpod/variables.py by scripts/generate. -->
"""


def render() -> str:
    """Return the text of the page."""
    return _HEAD + "".join(_row(name, each) for name, each in VARIABLES.items()) + _TAIL


def _row(name: str, variable: Variable) -> str:
    default = variable.no_default if variable.default is None else f"`{variable.default}`"
    names = ", ".join(f"`{other}`" for other in variable.also_reads)
    also = f" Also read: {names}." if names else ""
    return f"| `{name}` | {default} | {variable.meaning}{also} |\n"
