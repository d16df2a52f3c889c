"""scripts/deploy: reads deploy.toml and flags, shows the plan, and applies it once confirmed.

Exit status: 0 if the endpoint is as wanted (or the plan was only shown), else that of the error
in `errors.py`.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from pixpod_tools.deploy import configuration, report
from pixpod_tools.deploy.build import build_spec
from pixpod_tools.deploy.client import API_URL, ServerlessApi
from pixpod_tools.deploy.configuration import FlashBoot, Mode, Scaler
from pixpod_tools.deploy.documents import Endpoint
from pixpod_tools.deploy.errors import (
    CredentialsRefused,
    DeployError,
    InvalidConfiguration,
    NotConfirmed,
)
from pixpod_tools.deploy.plan import Action, Plan, differences, make_plan

KEY_VARIABLE = "RUNPOD_API_KEY"
DEFAULT_FILE = Path("deploy.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status. `arguments` lack the program's name, and default to the process's."""
    given = vars(_parser().parse_args(arguments))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        deploy(given, os.environ)
    except DeployError as error:
        sys.stderr.write(f"{error}\n")
        return error.status
    return 0


def deploy(given: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Plan, confirm and apply the deployment. Raises DeployError."""
    dry_run, is_agreed = given.pop("dry_run"), given.pop("yes")
    url, key_file = given.pop("api_url"), given.pop("api_key_file")
    spec = build_spec(configuration.parse(_keys(given)))
    key = _api_key(key_file, environ)
    if key is None:
        if not dry_run:
            raise CredentialsRefused(
                f"no API key: set {KEY_VARIABLE} or name its file by --api-key-file"
            )
        _write(report.plan_text(make_plan(spec, ()), spec))
        _write("without an API key nothing was read: this is the plan if no endpoint is there\n")
        return
    api = ServerlessApi(key, url)
    try:
        plan = make_plan(spec, api.endpoints())
        _write(report.plan_text(plan, spec))
        if dry_run:
            return
        _confirm(plan, is_agreed)
        endpoint = _apply(plan, api)
    finally:
        api.close()
    _write(report.left_text(differences(spec, endpoint)))
    model = spec.env["PIXPOD_MODELS"].partition(",")[0]
    _write(report.done_text(endpoint, model))


def _apply(plan: Plan, api: ServerlessApi) -> Endpoint:
    if plan.endpoint is None:
        return api.create(plan.body)
    return (
        plan.endpoint if plan.action is Action.NOTHING else api.update(plan.endpoint.id, plan.body)
    )


def _confirm(plan: Plan, is_agreed: bool) -> None:
    """Raise NotConfirmed unless there is nothing to do, --yes was given, or the user agrees."""
    if plan.action is Action.NOTHING or is_agreed:
        return
    if not sys.stdin.isatty():
        raise NotConfirmed("nothing was changed: no terminal to confirm on, add --yes to apply")
    _write(f"{plan.action}? [y/N] ")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NotConfirmed("nothing was changed")


def _api_key(file: Path | None, environ: Mapping[str, str]) -> SecretStr | None:
    """Read the API key from the file if one is named, else from the environment. There is no flag
    for the key, because other users of a machine can see flags.
    """
    if file is None:
        text = environ.get(KEY_VARIABLE, "")
    else:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InvalidConfiguration(
                "--api-key-file", str(file), "a readable text file"
            ) from error
    key = text.strip()
    if not key and file is None:
        return None
    if not key.isascii() or not key.isprintable() or not key or " " in key:
        raise CredentialsRefused("the API key has characters that no key has: check its source")
    return SecretStr(key)


def _keys(given: dict[str, Any]) -> dict[str, Any]:
    """Flags override the file; tables are merged."""
    file = given.pop("config", None)
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    keys = configuration.read_file(file) if file else {}
    for name, value in given.items():
        if name in _TABLES and isinstance(keys.get(name, {}), dict):
            value = {**keys.get(name, {}), **dict(value)}
        keys[name] = value
    return keys


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{name!r}: expected NAME=VALUE")
    return name, value


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_TABLES = {
    "precision": ("MODEL=PRECISION", "in place of the weights' own; may be repeated"),
    "env": ("NAME=VALUE", "a variable of the container; may be repeated"),
    "secrets": ("NAME=SECRET", "a variable from a secret of the platform; may be repeated"),
}
_FLAGS: tuple[tuple[str, Callable[[str], object] | Sequence[str], str, str], ...] = (
    ("name", str, "NAME", "of the endpoint; found by it"),
    ("image", str, "IMAGE", "with a tag or digest"),
    ("mode", tuple(Mode), "MODE", "where weights come from: " + ", ".join(Mode)),
    ("profile", str, "PROFILE", "of the image"),
    ("models", _listed, "NAME,...", "to serve; default all of the profile"),
    ("extras", _listed, "NAME,...", "to serve models with; default all of the profile"),
    ("stacks", _listed, "STACK,...", "that must fit on the GPU; docs/stacks.md"),
    ("catalog", str, "FILE", "further models and extras, as env.PIXPOD_CATALOG has them"),
    ("presets", str, "FILE", "that stacks may name, as env.PIXPOD_PRESETS has them"),
    ("accept-licences", _listed, "NAME,...", "that you have read and accept"),
    ("min-workers", int, "N", "always there and always paid; default 0"),
    ("max-workers", int, "N", "default 3"),
    ("idle-timeout-s", int, "S", "that a worker waits for a further job; default 5"),
    ("scaler", tuple(Scaler), "SCALER", ", ".join(Scaler)),
    ("scaler-value", float, "X", "seconds in the queue, or requests a worker; default 4"),
    ("execution-timeout-s", int, "S", "of one job; default 600"),
    ("flashboot", tuple(FlashBoot), "MODE", ", ".join(FlashBoot) + "; default on"),
    ("gpu-pools", _listed, "ID,...", "default: up to three that fit, the cheapest first"),
    ("exclude-gpus", _listed, "TYPE,...", "GPU types of these pools that are not wanted"),
    ("min-cuda", str, "X.Y", "that the driver supports; default 13.0, driver 580"),
    ("cpu", str, "KIND", "CPU workers of this kind, e.g. cpu5c"),
    ("vcpus", int, "N", "of a CPU worker; default 4"),
    ("container-disk-gb", int, "GB", "default from the models"),
    ("network-volume-id", str, "ID", "with mode volume"),
    ("data-centers", _listed, "ID,...", "default any"),
    ("registry-auth-id", str, "ID", "credential of a private registry"),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/deploy",
        description="Creates or updates the RunPod Serverless endpoint; docs/deploy.md says more.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", default=None, help="default deploy.toml, if there")
    add("--dry-run", action="store_true", help="show the plan, change nothing")
    add("--yes", action="store_true", help="apply without a question")
    add("--api-key-file", type=Path, metavar="FILE", help=f"default: {KEY_VARIABLE}")
    add("--api-url", default=API_URL, metavar="URL", help=f"default {API_URL}")
    for flag, kind, metavar, meaning in _FLAGS:
        typed: dict[str, Any] = {"type": kind} if callable(kind) else {"choices": kind}
        add(f"--{flag}", **typed, metavar=metavar, default=argparse.SUPPRESS, help=meaning)
    for table, (metavar, meaning) in _TABLES.items():
        flag = table.removesuffix("s")
        add(
            f"--{flag}",
            dest=table,
            type=_pair,
            action="append",
            metavar=metavar,
            default=argparse.SUPPRESS,
            help=meaning,
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
