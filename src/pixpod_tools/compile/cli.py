"""Compile models ahead of time, on a GPU of the class on which they will run.

  scripts/compile --weights DIR                  all models of a weights directory that run here
  scripts/compile --weights DIR --model sdxl --to DIR
  scripts/compile --list DIR                     packages there, and which would be used here
  scripts/compile --measure sd15-tiny            the first images with packages and without

Packages that are there already are kept. One package serves all sizes, batches and text lengths,
and each model with the same blocks. docs/compile.md explains when this pays, and how to add the
packages to a container image.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pixpod.catalog import load_catalog
from pixpod.errors import WorkerError

WEIGHTS = Path(__file__).parents[3] / "model_cache"

_NOISY = ("torchao", "torch.utils._pytree", "diffusers", "transformers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 1 for a model that cannot be compiled or measured."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="scripts/compile: %(message)s")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    from pixpod_tools.compile.exporting import CannotPackage

    try:
        for line in _run(given):
            sys.stdout.write(line + "\n")
    except (WorkerError, CannotPackage) as error:
        sys.stderr.write(f"scripts/compile: {error}\n")
        return 1
    return 0


def _run(given: argparse.Namespace) -> Iterator[str]:
    """Yield lines for standard output."""
    from pixpod.engine.compilation.compile import compile_key_of
    from pixpod.engine.device import prepare_device
    from pixpod_tools.compile.building import build_model
    from pixpod_tools.compile.listing import list_store
    from pixpod_tools.compile.measuring import Way, measure, measure_here
    from pixpod_tools.compile.models import choose_models

    device = prepare_device(given.device)
    store_dir: Path = given.to or given.weights / "compiled"
    if given.list is not None:
        yield from list_store(given.list, compile_key_of(device))
        return
    names = given.model if given.measure is None else [given.measure]
    specs = choose_models(load_catalog(given.catalog), given.weights, names, device)
    if given.measure is None:
        yield f"{store_dir}/{compile_key_of(device).folder}"
        for spec in specs:
            yield build_model(spec, given.weights, device, store_dir, is_anew=given.anew)
    elif given.way is not None:  # this process is the one that is measured
        yield measure_here(specs[0], given.weights, device, store_dir, Way(given.way))
    else:
        yield from measure(specs[0], given.weights, device, catalog_file=given.catalog)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/compile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", type=Path, metavar="DIR", default=WEIGHTS)
    parser.add_argument("--to", type=Path, metavar="DIR", help="default: compiled, in --weights")
    parser.add_argument(
        "--model", metavar="NAME", action="append", default=[], help="may be repeated"
    )
    parser.add_argument("--catalog", type=Path, metavar="FILE", help="models of your own")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--anew", action="store_true", help="also what is there already")
    parser.add_argument("--list", type=Path, metavar="DIR", help="say what a directory holds")
    parser.add_argument("--measure", metavar="NAME", help="time a model's first images")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    return parser
