"""Build the image of a profile, list its layers with their sizes, or search them for a secret.

`run` prints the command that runs it with nothing writable but /tmp. docs/container.md has more.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pixpod_tools.bake.recipes import PROFILES
from pixpod_tools.container.building import BuildSettings, build
from pixpod_tools.container.commands import ImageError
from pixpod_tools.container.layers import layer_table, save
from pixpod_tools.container.running import run_command

ROOT = Path(__file__).resolve().parents[3]


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 1 if a command failed or `search` found something."""
    given = _parser().parse_args(arguments)
    work: Callable[[argparse.Namespace], int] = given.work
    try:
        return work(given)
    except ImageError as error:
        sys.stderr.write(f"scripts/build_image: {error}\n")
        return 1


def _build(given: argparse.Namespace) -> int:
    tag = given.tag or default_tag(given.profile)
    settings = BuildSettings(
        root=ROOT,
        profile=given.profile,
        tag=tag,
        is_local=given.local,
        base_image=given.base_image,
        hf_token_file=given.hf_token_file,
        accepted_licences=given.accept_licences,
        extras=given.extras,
        catalog=given.catalog,
        pip_options=given.pip_options,
    )
    build(settings)
    sys.stdout.write(layer_table(tag) + "\n")
    return 0


def _layers(given: argparse.Namespace) -> int:
    sys.stdout.write(layer_table(given.image) + "\n")
    return 0


def _search(given: argparse.Namespace) -> int:
    needle = given.secret_file.read_bytes().strip()
    if not needle:
        raise ImageError(f"{given.secret_file} is empty: expected a file with the secret")
    with tempfile.TemporaryDirectory() as folder:
        image = save(given.image, Path(folder) / "image")
        found = list(image.files_with(needle))
        sys.stdout.write(f"{len(image.layers)} layers and the configuration were searched\n")
    for place in found:
        sys.stdout.write(f"FOUND in {place}\n")
    return 1 if found else 0


def _run(given: argparse.Namespace) -> int:
    command = run_command(given.image, name="pixpod", options=("--rm",))
    sys.stdout.write(shlex.join(command) + "\n")
    return 0


def default_tag(profile: str) -> str:
    """Return a profile's tag; `+`, as in `flux-schnell+sdxl`, is not allowed in a tag."""
    return f"localhost/pixpod:{profile.replace('+', '-')}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/build_image", description=__doc__)
    commands = parser.add_subparsers(required=True)

    builder = commands.add_parser("build", help="build the image of a profile")
    builder.set_defaults(work=_build)
    builder.add_argument("--profile", choices=PROFILES, required=True)
    builder.add_argument("--tag", help="default: localhost/pixpod:PROFILE")
    source = builder.add_mutually_exclusive_group()
    source.add_argument("--base-image", help="default: the Dockerfile's")
    source.add_argument(
        "--local", action="store_true", help="without any registry: Debian's Python, pip's wheels"
    )
    builder.add_argument("--hf-token-file", type=Path, metavar="FILE", help="for gated models")
    builder.add_argument("--accept-licences", default="", metavar="NAMES", help="of the weights")
    builder.add_argument(
        "--extras", default="", metavar="NAMES", help="beside the profile's, separated by blanks"
    )
    builder.add_argument(
        "--catalog", default="", metavar="FILE", help="in model_cache, with extras of your own"
    )
    builder.add_argument("--pip-options", default="", metavar="TEXT", help="for pip install")

    for name, work, description in (
        ("layers", _layers, "what each layer weighs"),
        ("search", _search, "whether a secret is in any layer; exits 1 if so"),
        ("run", _run, "print the command that runs an image locked down"),
    ):
        command = commands.add_parser(name, help=description)
        command.set_defaults(work=work)
        command.add_argument("image", nargs="?", default=default_tag("tiny"))
        if work is _search:
            command.add_argument("--secret-file", type=Path, metavar="FILE", required=True)
    return parser
