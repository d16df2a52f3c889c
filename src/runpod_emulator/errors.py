"""Errors that stop the emulator from starting, worded for the person who starts it.

EmulatorError
├── InvalidConfiguration     one setting that cannot be used
└── ConfigurationProblems    all of them at once
"""

from collections.abc import Sequence


class EmulatorError(Exception):
    """The emulator cannot start or go on; the message says why and what to do."""


class InvalidConfiguration(EmulatorError):
    """A setting that cannot be used. `value` is shown: leave it None for a secret or nothing."""

    def __init__(self, field: str, value: object, expected: str, hint: str | None = None) -> None:
        got = "" if value is None else f", got {value!r}"
        tail = "" if hint is None else f" ({hint})"
        super().__init__(f"{field}: expected {expected}{got}{tail}")
        self.field = field


class ConfigurationProblems(EmulatorError):
    """Every setting that cannot be used, one a line."""

    def __init__(self, problems: Sequence[InvalidConfiguration]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)
