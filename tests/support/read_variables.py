"""Compare the variables that a program reads with those that the table lists for it."""

from collections.abc import Iterable
from typing import Any

from pixpod.settings import VARIABLES
from pixpod_tools.generate.platform_variables import PLATFORM_VARIABLES, Program


class Reads(dict[str, str]):
    """An environment that notes which variables are read."""

    def __init__(self, **values: str) -> None:
        super().__init__(values)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def ours_and_platforms(names: Iterable[str]) -> set[str]:
    """Leave out names that are neither ours nor those of RunPod, AWS and Hugging Face."""
    prefixes = ("PIXPOD_", "RUNPOD_", "AWS_", "BUCKET_", "HF_")
    return {name for name in names if name.startswith(prefixes)}


def variables_of(program: Program) -> set[str]:
    """Return all variables that the table lists for a program."""
    ours = {*VARIABLES} if program is Program.WORKER else set()
    usual = {name for each in ours for name in VARIABLES[each].also_reads}
    platforms = {name for name, each in PLATFORM_VARIABLES.items() if program in each.read_by}
    return ours | usual | platforms
