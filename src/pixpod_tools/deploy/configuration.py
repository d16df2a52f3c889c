"""Configuration of an endpoint: the keys of deploy.toml, each of which is a flag too."""

import re
import tomllib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pixpod.families import Precision
from pixpod_tools.deploy.errors import InvalidConfiguration

_LOOKS_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|API_KEY")
_HAS_CREDENTIALS = re.compile(r"://[^/\s]*@")


class Mode(StrEnum):
    """Source of the endpoint's weights."""

    BAKED = "baked"
    CACHED_MODEL = "cached-model"
    VOLUME = "volume"


class Scaler(StrEnum):
    """Signal on which the platform adds workers."""

    QUEUE_DELAY = "queue_delay"
    REQUEST_COUNT = "request_count"


class FlashBoot(StrEnum):
    """The platform's option to keep the state of stopped workers."""

    OFF = "off"
    ON = "on"
    PRIORITY = "priority"


Text = Annotated[str, Field(pattern=r"^\S(.*\S)?$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
NameOfSecret = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
Texts = tuple[Text, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One endpoint. None stands for this program's choice; settings of workers go into `env`.

    `catalog` and `presets` are files on this machine. `secrets` maps variables to names of the
    platform's secrets, without their values.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: Text
    image: Text
    mode: Mode = Mode.BAKED
    profile: str | None = None
    models: Texts | None = None
    extras: Annotated[Texts, Field(min_length=1)] | None = None
    stacks: Texts = ()
    catalog: Text | None = None
    presets: Text | None = None
    precision: dict[str, Precision] = field(default_factory=dict)
    accept_licences: Texts = ()
    min_workers: Annotated[int, Field(ge=0)] = 0
    max_workers: Annotated[int, Field(ge=1)] = 3
    idle_timeout_s: Annotated[int, Field(ge=1, le=3600)] | None = None
    scaler: Scaler = Scaler.QUEUE_DELAY
    scaler_value: Annotated[float, Field(ge=0.5)] = 4
    execution_timeout_s: Annotated[int, Field(ge=5, le=604_800)] = 600
    flashboot: FlashBoot = FlashBoot.ON
    gpu_pools: Annotated[Texts, Field(min_length=1)] | None = None
    exclude_gpus: Texts = ()
    min_cuda: Annotated[str, Field(pattern=r"^\d+\.\d+$")] = "13.0"
    cpu: Text | None = None
    vcpus: Annotated[int, Field(ge=2)] = 4
    container_disk_gb: Annotated[int, Field(ge=1)] | None = None
    network_volume_id: Text | None = None
    data_centers: Texts = ()
    registry_auth_id: Text | None = None
    env: dict[Variable, str] = field(default_factory=dict)
    secrets: dict[Variable, NameOfSecret] = field(default_factory=dict)


_CONFIGURATION = TypeAdapter(Configuration)


def read_file(path: Path) -> dict[str, Any]:
    """Return the keys of a deploy.toml, unchecked. Raises InvalidConfiguration."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfiguration("--config", str(path), f"a readable file ({error})") from error
    except ValueError as error:
        raise InvalidConfiguration("--config", str(path), f"TOML ({error})") from error


def parse(keys: dict[str, Any]) -> Configuration:
    """Check each key by itself and keys that exclude each other. Raises InvalidConfiguration."""
    try:
        configuration = _CONFIGURATION.validate_python(keys)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "[key]")
        is_shown = first["loc"][0] not in ("env", "secrets") and first["type"] != "missing"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            message = f"a value, in deploy.toml or as --{place.replace('_', '-')}"
        shown = first["input"] if is_shown else None
        # the cause would show values of env
        raise InvalidConfiguration(place, shown, message) from None
    _check_workers(configuration)
    _check_variables(configuration)
    return configuration


def _check_workers(wanted: Configuration) -> None:
    if wanted.min_workers > wanted.max_workers:
        accepted = f"at most max_workers, {wanted.max_workers}"
        raise InvalidConfiguration("min_workers", wanted.min_workers, accepted)
    if wanted.scaler is Scaler.REQUEST_COUNT:
        if wanted.scaler_value != int(wanted.scaler_value) or wanted.scaler_value < 1:
            accepted = "a whole number of requests, 1 or more, with scaler request_count"
            raise InvalidConfiguration("scaler_value", wanted.scaler_value, accepted)
        if wanted.idle_timeout_s is not None:
            accepted = "none with scaler request_count: the platform refuses it"
            raise InvalidConfiguration("idle_timeout_s", wanted.idle_timeout_s, accepted)


def _check_variables(wanted: Configuration) -> None:
    """Refuse secrets that are not references. No value is shown, as it may be a secret."""
    for name, value in wanted.env.items():
        if _LOOKS_SECRET.search(name.upper()) or _HAS_CREDENTIALS.search(value):
            raise InvalidConfiguration(
                f"env.{name}",
                None,
                f"no secret: store it in the console under Secrets and write [secrets] {name} = "
                '"its name there"',
            )
        if name in wanted.secrets:
            raise InvalidConfiguration(f"env.{name}", None, "a variable that [secrets] has not")
