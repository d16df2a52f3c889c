"""Finds a project's handler, its Python and its test input, where no flag names them."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from runpod_emulator.errors import EmulatorError, InvalidConfiguration

HANDLERS = (Path("handler.py"), Path("src/handler.py"))
TEST_INPUT = Path("test_input.json")
VIRTUAL_ENV = "VIRTUAL_ENV"
"""Variable that is set while a virtual environment is active; `uv run` sets it, too."""

_IMPORTABLE = """\
from importlib.util import find_spec
print(*(name for name in ("runpod", "pip") if find_spec(name)))
"""


class SdkMissing(EmulatorError):
    """The Python that starts a worker cannot import `runpod`."""


def find_handler(directory: Path) -> Path:
    """Return the project's handler. Raises InvalidConfiguration if there is none."""
    for path in HANDLERS:
        if (directory / path).is_file():
            return directory / path
    expected = f"{' or '.join(map(str, HANDLERS))} in {directory}"
    remedy = "name another file, a command after a double dash, or a file by --config"
    raise InvalidConfiguration("handler", None, expected, remedy)


def find_python(directory: Path, environ: Mapping[str, str], own: Path) -> Path:
    """Return the active virtual environment's Python, that of `.venv`, or else `own`."""
    active = environ.get(VIRTUAL_ENV)
    for environment in (Path(active) if active else None, directory / ".venv"):
        if environment is not None and (python := environment / "bin" / "python").exists():
            return python
    return own


def python_at(path: Path) -> Path:
    """Return the program that a path, a name or a virtual environment's folder stands for.

    Raises ValueError, whose text is the expected value.
    """
    if path.is_dir():
        path = path / "bin" / "python"
    found = shutil.which(path)
    if found is None:
        raise ValueError("a Python program, or the folder of a virtual environment")
    return Path(found)


def check_sdk(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Raise SdkMissing if a worker's command starts a Python that cannot import the SDK.

    `environ` is the worker's. Programs that are not called `python` are not checked.
    """
    python = command[0]
    if re.fullmatch(r"python[0-9.]*", Path(python).name) is None:
        return
    check = subprocess.run(  # noqa: S603 - a program that the user has chosen
        (python, "-c", _IMPORTABLE),
        env=environ,
        capture_output=True,
        text=True,
    )
    importable = check.stdout.split()
    if check.returncode or "runpod" in importable:
        return  # a Python that cannot run at all gives the reason when the worker starts
    program = shlex.quote(shutil.which(python) or python)
    install = (
        f"{program} -m pip install runpod"
        if "pip" in importable
        else f"uv pip install --python {program} runpod"
    )
    raise SdkMissing(
        f"{shlex.join(command)}: this Python cannot import runpod, which every worker needs.\n"
        f"Install it there:  {install}\n"
        "or choose the project's Python by --python, or activate its virtual environment."
    )
