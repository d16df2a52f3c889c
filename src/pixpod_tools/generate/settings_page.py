"""Render docs/settings.md from the tables of variables."""

from pixpod.environment import Variable
from pixpod.settings import VARIABLES
from pixpod_tools.generate.markdown import code, generated_from, table
from pixpod_tools.generate.platform_variables import PLATFORM_VARIABLES

_HEAD = """\
# Settings

A worker is configured by environment variables. They are read once, at start. A value that cannot
be used, or an unknown name that begins with `PIXPOD_`, does not crash the worker: it answers each
job with the error `invalid_settings`, which names the variable. An empty value counts as not set.

"""

_PLATFORMS = """
## Variables of RunPod and Hugging Face

The platform sets most of them. `scripts/emulator_bench` runs a worker without the SDK, which reads
what the SDK would read. `scripts/upload_spool` and `scripts/redeliver` read the worker's variables.
Other programs under `scripts/` are configured by options; `--help` lists them.

"""


def render() -> str:
    """Return the text of the page."""
    settings = table(
        ("variable", "accepted", "default", "meaning"),
        (
            (f"`{name}`", each.kind.accepted, _default(each), each.meaning + _also_read(each))
            for name, each in VARIABLES.items()
        ),
    )
    platforms = table(
        ("variable", "read by", "meaning"),
        (
            (f"`{name}`", ", ".join(each.read_by), each.meaning)
            for name, each in PLATFORM_VARIABLES.items()
        ),
    )
    return _HEAD + settings + _PLATFORMS + platforms + generated_from("src/pixpod/settings.py")


def _default(variable: Variable) -> str:
    return variable.no_default if variable.default is None else f"`{variable.default}`"


def _also_read(variable: Variable) -> str:
    return f" Also read: {code(variable.also_reads)}." if variable.also_reads else ""
