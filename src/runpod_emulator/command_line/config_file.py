"""A configuration, from a TOML file or from flags, as checked settings.

[emulator]        host, port, db, state_dir, rate_limits, echo_logs, seed, cors_origin
[behaviour]       any field of `Behaviour`
[endpoints.ID]    handler (and python) or command, and any other field of `EndpointSettings`
"""

import re
import shutil
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    model_validator,
)

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.command_line.problems import validated
from runpod_emulator.command_line.project import find_python, python_at
from runpod_emulator.errors import EmulatorError
from runpod_emulator.settings import EmulatorSettings, EndpointSettings

DEFAULT_STATE_DIR = Path(".runpod_emulator")
DEFAULT_PORT = 8008
"""Different from 8000, the port of the SDK's own test server."""

ENDPOINT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

AT_LEAST_0, AT_LEAST_1, ABOVE_0 = {"ge": 0}, {"ge": 1}, {"gt": 0}
LIMITS: Mapping[str, Mapping[str, float]] = {
    "poll_hold_s": {"ge": 0.1, "le": 80},  # the SDK gives up after 90 s; without any it spins
    "ping_interval_s": AT_LEAST_1,
    "heartbeat_timeout_s": ABOVE_0,
    "webhook_timeout_s": ABOVE_0,
    "max_policy_s": ABOVE_0,
    "oversize_status": {"ge": 400, "le": 599},
    "late_result_status": {"ge": 200, "le": 599},
    "workers_per_step": AT_LEAST_1,
    "scaler_value": ABOVE_0,
    "execution_timeout_s": ABOVE_0,
    "init_timeout_s": ABOVE_0,
    "ttl_s": ABOVE_0,
    "gpu_count": AT_LEAST_1,
    "port": {"ge": 0, "le": 65535},
}
"""Limits of numbers in settings and behaviour; the ones not listed are at least 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The settings given in a file or by flags; absent ones keep their defaults."""

    emulator: Mapping[str, Any]  # values of EmulatorSettings by name, checked
    behaviour: Mapping[str, Any]  # likewise of Behaviour
    endpoints: tuple[EndpointSettings, ...]

    def overridden_by(self, other: "Configuration") -> "Configuration":
        """Return a configuration with the settings of `other` first, and the endpoints of both."""
        return Configuration(
            emulator={**self.emulator, **other.emulator},
            behaviour={**self.behaviour, **other.behaviour},
            endpoints=(*self.endpoints, *other.endpoints),
        )

    def settings(self, api_key: str) -> EmulatorSettings:
        state_dir = self.emulator.get("state_dir", DEFAULT_STATE_DIR.absolute())
        given = {
            "port": DEFAULT_PORT,
            "state_dir": state_dir,
            "database": state_dir / "jobs.db",
            **self.emulator,
        }
        behaviour = Behaviour(**self.behaviour)
        return EmulatorSettings(
            endpoints=self.endpoints, api_key=api_key, behaviour=behaviour, **given
        )


def read_config_file(path: Path, environ: Mapping[str, str]) -> Configuration:
    """Read a file. Paths in it are relative to its folder. Raises EmulatorError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EmulatorError(f"{path}: cannot be read as TOML: {error}") from error
    return parse_configuration(document, path.absolute().parent, environ)


def parse_configuration(
    document: Mapping[str, object], base: Path, environ: Mapping[str, str]
) -> Configuration:
    """Check `document`, the tables of a file; relative paths are relative to `base`.

    A handler without a Python gets the project's: `environ` names the active environment.
    Raises ConfigurationProblems.
    """
    # Any: the document's fields are made at run time, below
    checked: Any = validated(ConfigurationDocument, document, context={"base": base})
    emulator = _given(checked.emulator)
    if "db" in emulator:
        emulator["database"] = emulator.pop("db")
    return Configuration(
        emulator=emulator,
        behaviour=_given(checked.behaviour),
        endpoints=tuple(_endpoint(key, table, environ) for key, table in checked.endpoints.items()),
    )


def _absolute(path: Path, info: ValidationInfo) -> Path:
    return Path(_base(info), path.expanduser())


def _existing_handler(path: Path, info: ValidationInfo) -> Path:
    absolute = _absolute(path, info)
    if absolute.suffix != ".py" or not absolute.is_file():
        raise ValueError("a Python file that exists; start anything else by a command")
    return absolute


def _existing_python(path: Path, info: ValidationInfo) -> Path:
    is_name = len(path.parts) == 1 and not (_base(info) / path).exists()
    return python_at(path if is_name else _absolute(path, info))


def _existing_directory(path: Path, info: ValidationInfo) -> Path:
    absolute = _absolute(path, info)
    if not absolute.is_dir():
        raise ValueError("a directory that exists")
    return absolute


def _runnable(command: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """Make the paths in a command absolute: they are relative to the file, not to `workdir`."""
    absolute = tuple(_absolute_if_file(part, _base(info)) for part in command)
    if shutil.which(absolute[0]) is None:
        raise ValueError(f"a list that starts with a program, which {command[0]!r} is not")
    return absolute


def _absolute_if_file(part: str, base: Path) -> str:
    looks_like_file = "/" in part or "." in part
    return str(base / part) if looks_like_file and (base / part).is_file() else part


def _base(info: ValidationInfo) -> Path:
    assert isinstance(info.context, dict)
    base: Path = info.context["base"]
    return base


def _id(key: str) -> str:
    if not ENDPOINT_ID.fullmatch(key):
        raise ValueError("an id of at most 63 letters, digits, - and _, since it is part of URLs")
    return key


AbsolutePath = Annotated[Path, Field(strict=False), AfterValidator(_absolute)]
Directory = Annotated[Path, Field(strict=False), AfterValidator(_existing_directory)]
Handler = Annotated[Path, Field(strict=False), AfterValidator(_existing_handler)]
Python = Annotated[Path, Field(strict=False), AfterValidator(_existing_python)]
Command = Annotated[tuple[str, ...], Field(strict=False, min_length=1), AfterValidator(_runnable)]


class EmulatorBase(BaseModel):
    """The emulator's paths, which become absolute."""

    model_config = STRICT

    db: AbsolutePath | None = None
    state_dir: AbsolutePath | None = None


class EndpointBase(BaseModel):
    """An endpoint's `handler` with its `python`, or `command`, and the checks across its fields."""

    model_config = STRICT

    handler: Handler | None = None
    python: Python | None = None
    command: Command | None = None
    workdir: Directory = Field(default=Path(), validate_default=True)

    @model_validator(mode="after")
    def _fits_together(self) -> "EndpointBase":
        if (self.handler is None) == (self.command is None):
            raise ValueError("either handler or command")
        if self.python is not None and self.command is not None:
            raise ValueError("python only with handler; a command names its own program")
        endpoint = _endpoint("", self, {})
        least, most = endpoint.workers_min, endpoint.workers_max
        if least > most:
            raise ValueError(f"workers_min of at most workers_max, which are {least} and {most}")
        return self


def _columns(record: type, *, without: tuple[str, ...] = (), **special: object) -> dict[str, Any]:
    """Return fields for `create_model` like those of a settings dataclass.

    None of them is required: an absent field keeps the dataclass's default.
    """
    hints = {**get_type_hints(record), **special}
    names = (each.name for each in fields(record) if each.name not in without)
    return {
        name: (hints[name], Field(default=None, **_checks(name, hints[name]))) for name in names
    }


def _checks(name: str, hint: object) -> dict[str, Any]:
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {"strict": False}  # given by its text
    is_number = hint in (int, float, int | None)
    return dict(LIMITS.get(name, AT_LEAST_0)) if is_number else {}


BehaviourTable = create_model(
    "BehaviourTable",
    __config__=STRICT,
    **_columns(Behaviour),
)
EmulatorTable = create_model(
    "EmulatorTable",
    __base__=EmulatorBase,
    **_columns(
        EmulatorSettings, without=("endpoints", "api_key", "state_dir", "database", "behaviour")
    ),
)
EndpointTable = create_model(
    "EndpointTable",
    __base__=EndpointBase,
    **_columns(EndpointSettings, without=("id", "command", "workdir")),
)
ConfigurationDocument = create_model(
    "ConfigurationDocument",
    __config__=STRICT,
    emulator=(EmulatorTable, EmulatorTable()),
    behaviour=(BehaviourTable, BehaviourTable()),
    endpoints=(dict[Annotated[str, AfterValidator(_id)], EndpointTable], {}),  # type: ignore[valid-type] # made above
)


def _given(table: BaseModel) -> dict[str, Any]:
    return table.model_dump(exclude_unset=True)


def _endpoint(key: str, table: EndpointBase, environ: Mapping[str, str]) -> EndpointSettings:
    given = {**_given(table), "workdir": table.workdir}
    handler, python = given.pop("handler", None), given.pop("python", None)
    if handler is not None:
        python = python or find_python(table.workdir, environ, Path(sys.executable))
        given["command"] = (str(python), "-u", str(handler))
    return EndpointSettings(id=key, **given)
