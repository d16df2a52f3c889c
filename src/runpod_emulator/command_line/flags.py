"""The flags of the command line, and the configuration that they make.

With `--config` the endpoints are those of the file, and flags for an endpoint are refused; every
other flag overrides the file.
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runpod_emulator import __version__
from runpod_emulator.command_line.config_file import (
    DEFAULT_PORT,
    DEFAULT_STATE_DIR,
    Configuration,
    parse_configuration,
    read_config_file,
)
from runpod_emulator.command_line.logs import LEVELS, LogFormat
from runpod_emulator.command_line.project import HANDLERS, VIRTUAL_ENV, find_handler
from runpod_emulator.command_line.welcome import KEY_VARIABLE
from runpod_emulator.errors import EmulatorError, InvalidConfiguration
from runpod_emulator.faults import FaultPlan, FaultRule, InvalidFault, parse_rule
from runpod_emulator.settings import Scaler

DEFAULT_ENDPOINT_ID = "endpoint"

_EMULATOR_KEYS = (
    *("host", "port", "db", "state_dir", "rate_limits", "echo_logs", "seed", "cors_origin"),
)
_ENDPOINT_KEYS = (
    "handler",
    "python",
    "command",
    "workers_min",
    "workers_max",
    "idle_timeout_s",
    "scaler",
    "scaler_value",
    "execution_timeout_s",
    "gpu",
    "capacity",
    "env",
    "workdir",
)
"""The flags of an endpoint, named as in the configuration file."""

_EPILOG = """\
In place of --handler, a command may follow after a double dash:
  -- python -u handler.py --flag
"""


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments. A flag that was left out is no attribute of the result.

    Ends the process as argparse does, with status 2 for a flag that cannot be used.
    """
    own, command = _split(arguments)
    if not own or (own[0].startswith("-") and own[0] not in ("-h", "--help", "--version")):
        own = ["serve", *own]
    given = _parser().parse_args(own)
    if command:
        given.command = command
    return given


def configuration_of(given: argparse.Namespace, environ: Mapping[str, str]) -> Configuration:
    """Return the configuration. Raises EmulatorError with all flags that cannot be used.

    Without a handler, a command and `--config`, the handler is the one of the project in the
    current folder; `environ` names the active virtual environment.
    """
    flags = vars(given)
    if not {"handler", "command", "config"} & flags.keys():
        flags["handler"] = find_handler(flags.get("workdir", Path()).absolute())
    endpoint = {key: flags[key] for key in _ENDPOINT_KEYS if key in flags}
    if "env" in endpoint:
        endpoint["env"] = dict(endpoint["env"])
    document: dict[str, object] = {
        "emulator": {key: flags[key] for key in _EMULATOR_KEYS if key in flags},
        "behaviour": {name: literal(text) for name, text in flags.get("behaviour", ())},
    }
    if "config" not in flags:
        project = flags["handler"].parent if "handler" in flags else flags.get("workdir", Path())
        document["endpoints"] = {flags.get("endpoint", id_of(project.absolute())): endpoint}
        return parse_configuration(document, Path.cwd(), environ)
    misplaced = [key for key in ("endpoint", *_ENDPOINT_KEYS) if key in flags]
    if misplaced:
        raise EmulatorError(f"with --config these belong into the file: {', '.join(misplaced)}")
    in_file = read_config_file(flags["config"], environ)
    if not in_file.endpoints:
        raise InvalidConfiguration("endpoints", None, "at least one table [endpoints.ID]")
    return in_file.overridden_by(parse_configuration(document, Path.cwd(), environ))


def fault_rules(given: argparse.Namespace) -> tuple[FaultRule, ...]:
    """Return the rules. Raises EmulatorError for an invalid rule, or an id that is used twice."""
    plan = FaultPlan(seed=0)
    for text in getattr(given, "fault", ()):
        try:
            plan.add(parse_rule(json.loads(text)))
        except InvalidFault as error:
            raise EmulatorError(f"--fault {text}: {error}") from error
        except ValueError as error:
            raise InvalidConfiguration("--fault", text, "a JSON object") from error
    return tuple(tally.rule for tally in plan.rules)


def id_of(folder: Path) -> str:
    """Return an endpoint's id from the name of a project's folder, without invalid characters."""
    name = folder.parent.name if folder.name == "src" else folder.name
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63] or DEFAULT_ENDPOINT_ID


def literal(text: str) -> object:
    """Parse `true`, `false` or a number; return anything else as text."""
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split own arguments from the worker's command after a double dash."""
    own = list(arguments)
    at = own.index("--") if "--" in own else len(own)
    return own[:at], own[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="runpod-emulator",
        description="RunPod Serverless on this machine, for the unmodified runpod SDK.",
        epilog="serve is meant if no command is named.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="action", metavar="serve | test", required=True)
    shared: dict[str, Any] = {  # keywords of one function, of several types
        "allow_abbrev": False,
        "argument_default": argparse.SUPPRESS,
        "epilog": _EPILOG,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
    serve = commands.add_parser(
        "serve",
        help="listen until Ctrl-C",
        usage="runpod-emulator serve [FLAGS] [--handler FILE | --config FILE | -- COMMAND ...]",
        **shared,
    )
    _add_endpoint_flags(serve)
    _add_emulator_flags(serve)
    test = commands.add_parser(
        "test",
        help="run a RunPod Hub tests.json, or test_input.json",
        usage="runpod-emulator test [FLAGS] [-- COMMAND ...]",
        **shared,
    )
    _add_test_flags(test)
    return parser


def _add_endpoint_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the endpoint, named as in RunPod's console").add_argument
    add("--endpoint", metavar="ID", help="default: the name of the project's folder")
    _add_handler_flags(add)
    add("--workers-min", type=int, metavar="N", help="active workers; default 0")
    add("--workers-max", type=int, metavar="N", help="default 3")
    add("--idle-timeout", dest="idle_timeout_s", type=float, metavar="S", help="default 5")
    add("--scaler", metavar="|".join(Scaler), help=f"default {Scaler.QUEUE_DELAY}")
    add("--scaler-value", type=float, metavar="N", help="seconds, or requests a worker; default 4")
    add(
        "--execution-timeout",
        dest="execution_timeout_s",
        type=float,
        metavar="S",
        help="default 600",
    )
    add("--gpu", metavar="NAME", help="sets the price; workers see it in RUNPOD_GPU_TYPE_ID")
    add("--capacity", type=int, metavar="N", help="GPUs available; further workers are throttled")
    add("--env", type=pair, action="append", metavar="NAME=VALUE", help="for workers; repeat")
    add("--workdir", type=Path, metavar="DIR", help="where workers run; default: this directory")


def _add_handler_flags(add: Callable[..., object]) -> None:
    names = " or ".join(map(str, HANDLERS))
    add("--handler", type=Path, metavar="FILE", help=f"the worker's Python file; default {names}")
    add(
        "--python",
        type=Path,
        metavar="FILE",
        help=f"runs the handler; default that of {VIRTUAL_ENV}, of .venv, or the emulator's own",
    )


def _add_emulator_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the emulator").add_argument
    add("--config", type=Path, metavar="FILE", help="a TOML file, for more than one endpoint")
    add("--host", help="default 127.0.0.1; another one needs an API key of yours")
    add("--port", type=int, metavar="N", help=f"default {DEFAULT_PORT}; 0 is any that is free")
    add("--api-key", metavar="KEY", help=f"or in {KEY_VARIABLE}; default: one made and kept")
    add("--state-dir", type=Path, metavar="DIR", help=f"default {DEFAULT_STATE_DIR}")
    add("--db", type=Path, metavar="FILE", help="default jobs.db in the state folder")
    add("--no-rate-limits", dest="rate_limits", action="store_false", help="the platform has them")
    add(
        "--cors",
        dest="cors_origin",
        metavar="ORIGIN",
        help="let web pages of this origin call it, e.g. http://localhost:3000, or * for any",
    )
    add("--reload", action="store_true", help="restart workers when Python files change")
    add(
        "--quiet",
        dest="echo_logs",
        action="store_false",
        help="no workers' logs; log only warnings",
    )
    add("--log-level", choices=LEVELS, help="default INFO, or WARNING with --quiet")
    add("--log-format", type=LogFormat, choices=tuple(LogFormat), help="default text")
    add("--seed", type=int, metavar="N", help="of faults by chance; default 0")
    add(
        "--behaviour",
        type=pair,
        action="append",
        metavar="NAME=VALUE",
        help="how the platform behaves where that is uncertain; repeat",
    )
    add("--fault", action="append", metavar="JSON", help="a fault on demand; repeat")


def _add_test_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_handler_flags(add)
    add("--tests", type=Path, metavar="FILE", help="default .runpod/tests.json or test_input.json")
    add("--env", type=pair, action="append", metavar="NAME=VALUE", help="over the file's; repeat")
    add("--workdir", type=Path, metavar="DIR", help="where workers run; default: this directory")
    add(
        "--timeout",
        dest="execution_timeout_s",
        type=float,
        metavar="S",
        help="execution of each test, instead of the file's",
    )
    add("--verbose", action="store_true", help="show the workers' and the emulator's logs")
