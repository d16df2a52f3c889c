"""Bake weights directories: fetch, convert, check and split the files that workers boot from.

Needs no GPU. A weights directory holds manifest.toml and a folder per model, in the layout of
diffusers, with weights in the precision in which they are served.

  scripts/bake --profile flux-dev --to DIR --accept-licence flux-1-dev-non-commercial
  scripts/bake --model sdxl=float16 --from FOLDER --vae FOLDER --to DIR
  scripts/bake --model sd15=float16 --from FILE.safetensors --config FOLDER --to DIR
  scripts/bake --model sdxl=float16 --lora FILE.safetensors=0.8 --to DIR
  scripts/bake --profile flux-dev --extra NAME=float16 --to DIR
  scripts/bake --extra NAME=float16 --from FOLDER --to DIR
  scripts/bake --random flux-dev --size-gb 4 --to DIR
  scripts/bake --verify DIR
  scripts/bake --layers 8 --from DIR --to DIR
"""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pixpod.catalog import Catalog, load_catalog
from pixpod.errors import InvalidSettings, WorkerError
from pixpod.extras import ExtraSpec, load_extras
from pixpod.families import Precision
from pixpod.weights.manifest import names_in, read_manifest

if TYPE_CHECKING:
    from pixpod_tools.bake.sources import SourceOptions

T = TypeVar("T")

ROOT = Path(__file__).parents[3]

_NOISY = ("torchao", "torch.utils._pytree", "diffusers", "transformers")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="scripts/bake: %(message)s")
    for name in ("httpx", "httpx2", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return _command(options)(options)
    except WorkerError as error:
        sys.stderr.write(f"scripts/bake: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bake",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command = parser.add_mutually_exclusive_group()
    command.add_argument("--profile", metavar="NAME", help="the models of an image, by name")
    command.add_argument(
        "--model",
        metavar="NAME=PRECISION[,t5=..][,adaln=..]",
        action="append",
        help="one model of the catalog; may be repeated",
    )
    command.add_argument(
        "--random",
        metavar="NAME[=PRECISION..]",
        help="random weights of the full size of a FLUX, SDXL or SD 1.5 model of the catalog",
    )
    command.add_argument("--verify", type=Path, metavar="DIR", help="check every byte; 1 if wrong")
    command.add_argument(
        "--layers", type=_count, metavar="N", help="spread a weights directory over N folders"
    )
    parser.add_argument(
        "--extra",
        metavar="NAME[=PRECISION]",
        action="append",
        help="an extra of the catalog, such as a ControlNet, alone or beside models, whose --from, "
        "--config, --vae and --revision are not its own; may be repeated",
    )
    parser.add_argument("--to", type=Path, metavar="DIR", help="where to write")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="hub|FOLDER|FILE",
        help="where the weights are: the hub, a folder of diffusers, a weights directory, or a "
        ".safetensors file (default: the hub; model_cache for the tiny models)",
    )
    parser.add_argument("--config", type=Path, metavar="FOLDER", help="configs of a single FILE")
    parser.add_argument(
        "--lora",
        metavar="FILE[=SCALE]",
        action="append",
        default=[],
        help="a LoRA to add to the weights of one --model; may be repeated",
    )
    parser.add_argument("--vae", type=Path, metavar="FOLDER", help="a VAE instead of the model's")
    parser.add_argument("--revision", help="instead of the catalog's; what a local source is")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="the hub's token (default: HF_TOKEN)"
    )
    parser.add_argument(
        "--accept-licence", metavar="NAME", action="append", default=[], help="may be repeated"
    )
    parser.add_argument(
        "--catalog", type=Path, metavar="FILE", help="models and extras of your own"
    )
    parser.add_argument("--shard-gb", type=_gigabytes, default=4_000_000_000, metavar="GB")
    parser.add_argument("--size-gb", type=_gigabytes, metavar="GB", help="with --random: in all")
    return parser


def _bake(options: argparse.Namespace) -> int:
    from pixpod.engine.loading.model_loading import silence_libraries
    from pixpod_tools.bake.bake import bake
    from pixpod_tools.bake.directory import list_models
    from pixpod_tools.bake.recipes import Profile, get_profile, parse_lora, parse_recipe

    silence_libraries()
    directory = _required(options.to, "--to DIR")
    profile = (
        get_profile(options.profile)
        if options.profile is not None
        else Profile(models=tuple(map(parse_recipe, options.model)))
    )
    if options.lora:
        loras = tuple(map(parse_lora, options.lora))
        profile = replace(profile, models=(replace(profile.models[0], loras=loras),))
    requested = _source_options(options)
    catalog = load_catalog(options.catalog)
    extras = _parse_extras((*profile.extras, *(options.extra or ())), options)
    for recipe in profile.models:
        bake(directory, recipe, catalog, requested, options.shard_gb)
    usual = replace(requested, location=None, config=None, vae=None, revision=None)
    _bake_each(extras, directory, usual, options.shard_gb)
    _say_models(list_models(directory))
    return 0


def _bake_extras(options: argparse.Namespace) -> int:
    from pixpod.engine.loading.model_loading import silence_libraries
    from pixpod_tools.bake.directory import list_models

    silence_libraries()
    directory = _required(options.to, "--to DIR")
    if options.config is not None or options.vae is not None:
        raise InvalidSettings("--config and --vae are for models: expected none with --extra")
    extras = _parse_extras(options.extra, options)
    _bake_each(extras, directory, _source_options(options), options.shard_gb)
    _say_models(list_models(directory))
    return 0


def _parse_extras(
    texts: Sequence[str], options: argparse.Namespace
) -> list[tuple[ExtraSpec, Precision]]:
    from pixpod_tools.bake.recipes import parse_extra

    extras = load_extras(options.catalog)
    return [parse_extra(text, extras) for text in texts]


def _bake_each(
    extras: Sequence[tuple[ExtraSpec, Precision]],
    directory: Path,
    requested: "SourceOptions",
    max_shard_bytes: int,
) -> None:
    from pixpod_tools.bake.extras import bake_extra

    for extra, precision in extras:
        bake_extra(directory, extra, precision, requested, max_shard_bytes)


def _source_options(options: argparse.Namespace) -> "SourceOptions":
    from pixpod_tools.bake.sources import SourceOptions, read_token

    return SourceOptions(
        location=options.source,
        own_models=ROOT / "model_cache",
        config=options.config,
        vae=options.vae,
        revision=options.revision,
        token=read_token(options.token_file),
        accepted_licences=frozenset(options.accept_licence),
    )


def _bake_random(options: argparse.Namespace) -> int:
    from pixpod.engine.loading.model_loading import silence_libraries
    from pixpod_tools.bake.bake import bake_random
    from pixpod_tools.bake.directory import list_models
    from pixpod_tools.bake.recipes import parse_random_recipe

    silence_libraries()
    directory = _required(options.to, "--to DIR")
    recipe = parse_random_recipe(options.random, load_catalog(options.catalog))
    bake_random(directory, recipe, options.size_gb, options.shard_gb)
    _say_models(list_models(directory))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from pixpod_tools.bake.bars import byte_bar
    from pixpod_tools.bake.verify import verify_directory

    directory = options.verify
    manifest = read_manifest(directory)
    catalog: Catalog = load_catalog(options.catalog)
    total_bytes = sum(entry.size_bytes for entry in manifest.values())
    with byte_bar("checking", total_bytes) as bar:
        problems = verify_directory(
            directory, manifest, catalog, bar.update, load_extras(options.catalog)
        )
    for problem in problems:
        _say(f"wrong: {problem}")
    num_models = len(names_in(manifest, extras=False))
    files = sum(len(entry.files) for entry in manifest.values())
    _say(
        f"{len(problems)} wrong" if problems else "as baked",
        f"{num_models} models, {len(manifest) - num_models} extras, {files} files, "
        f"{total_bytes} bytes in {directory}",
    )
    return 1 if problems else 0


def _layers(options: argparse.Namespace) -> int:
    from pixpod_tools.bake.layers import split_directory

    source = Path(_required(options.source, "--from DIR"))
    layers = split_directory(source, _required(options.to, "--to DIR"), options.layers)
    _say(f"{'layer':>5}  {'bytes':>14}  files")
    for name, files in layers.items():
        _say(f"{name:>5}  {sum(files.values()):>14,}  {len(files)}")
    return 0


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "profile": _bake,
    "model": _bake,
    "random": _bake_random,
    "verify": _verify,
    "layers": _layers,
}


def _command(options: argparse.Namespace) -> Callable[[argparse.Namespace], int]:
    """Return what to do. Raises InvalidSettings for options that do not go together."""
    chosen = [name for name in _COMMANDS if getattr(options, name) is not None]
    if options.lora and len(options.model or ()) != 1:
        raise InvalidSettings("--lora: expected one --model beside it")
    if options.extra is None:
        if not chosen:
            raise InvalidSettings(f"one of --extra, --{', --'.join(_COMMANDS)} is needed here")
        return _COMMANDS[chosen[0]]
    if chosen and chosen[0] not in ("profile", "model"):
        raise InvalidSettings(
            f"--extra: expected alone, with --profile or --model, not --{chosen[0]}"
        )
    return _COMMANDS[chosen[0]] if chosen else _bake_extras


def _say_models(models: Mapping[str, int]) -> None:
    for name, size_bytes in models.items():
        _say(f"{name}: {size_bytes:,} bytes")


def _say(*parts: str) -> None:
    sys.stdout.write(": ".join(parts) + "\n")


def _required(value: T | None, name: str) -> T:
    if value is None:
        raise InvalidSettings(f"{name} is needed here")
    return value


def _gigabytes(text: str) -> int:
    size_bytes = int(float(text) * 1e9)
    if size_bytes <= 0:
        raise ValueError(text)
    return size_bytes


def _count(text: str) -> int:
    count = int(text)
    if count <= 0:
        raise ValueError(text)
    return count


if __name__ == "__main__":
    sys.exit(main())
