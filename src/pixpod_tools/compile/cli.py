"""Compile models ahead of time, on a card of the class on which they will run.

  scripts/compile --weights DIR                  all models of a weights directory that run here
  scripts/compile --weights DIR --model sdxl --to DIR
  scripts/compile --list DIR                     what is there, and what would be used here
  scripts/compile --measure sd15-tiny            the first images with packages and without

What is there already is left as it is. One package serves all sizes, batches and text lengths, and
each model with the same blocks. docs/compile.md says when this pays, and how the result gets into
an image.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pixpod.catalog import Catalog, ModelSpec, load_catalog
from pixpod.engine.compilation.store import CompiledStore
from pixpod.errors import WorkerError

if TYPE_CHECKING:
    import torch

WEIGHTS = Path(__file__).parents[3] / "model_cache"

_NOISY = ("torchao", "torch.utils._pytree", "diffusers", "transformers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 for what cannot be compiled or measured."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="scripts/compile: %(message)s")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    from pixpod_tools.compile.exporting import CannotPackage

    try:
        return _run(given)
    except (WorkerError, CannotPackage) as error:
        sys.stderr.write(f"scripts/compile: {error}\n")
        return 1


def _run(given: argparse.Namespace) -> int:
    from pixpod.engine.device import prepare_device
    from pixpod_tools.compile.measuring import Way, measure, measure_here
    from pixpod_tools.compile.models import choose_models

    device = prepare_device(given.device)
    store_dir: Path = given.to or given.weights / "compiled"
    if given.list is not None:
        return _list(given.list, device)
    catalog = load_catalog(given.catalog)
    if given.measure is not None:
        (spec,) = choose_models(catalog, given.weights, [given.measure], device)
        if given.way is not None:  # this is the process that is measured
            sys.stdout.write(measure_here(spec, given.weights, device, store_dir, Way(given.way)))
        else:
            for line in measure(spec, given.weights, device, catalog_file=given.catalog):
                sys.stdout.write(line + "\n")
        return 0
    return _build(given, catalog, device, store_dir)


def _list(directory: Path, device: "torch.device") -> int:
    from pixpod.engine.compilation.compile import compile_key_of
    from pixpod_tools.compile.listing import list_store

    for line in list_store(directory, compile_key_of(device)):
        sys.stdout.write(line + "\n")
    return 0


def _build(
    given: argparse.Namespace, catalog: Catalog, device: "torch.device", store_dir: Path
) -> int:
    from pixpod.engine.compilation.compile import compile_key_of
    from pixpod_tools.compile.models import choose_models

    specs = choose_models(catalog, given.weights, given.model, device)
    sys.stdout.write(f"{store_dir}/{compile_key_of(device).folder}\n")
    for spec in specs:
        _build_model(spec, given, device, store_dir)
    return 0


def _build_model(
    spec: ModelSpec, given: argparse.Namespace, device: "torch.device", store_dir: Path
) -> None:
    from tqdm import tqdm

    from pixpod_tools.compile.building import build_packages, check_packages, tasks_left
    from pixpod_tools.compile.models import load

    model = load(spec, given.weights, device)
    store = CompiledStore(store_dir)
    tasks = tasks_left(model, store, is_anew=given.anew)
    started = time.perf_counter()
    with tqdm(total=len(tasks), desc=spec.name, unit="kind", disable=not tasks) as bar:
        for package in build_packages(model, tasks, store, store_dir):
            bar.update()
            bar.write(f"  {package.size_bytes / 1e6:8.1f} MB  {package.kind}", file=sys.stdout)
    check_packages(model, store)
    seconds = time.perf_counter() - started
    built = f"{len(tasks)} built in {seconds:.0f} s" if tasks else "all there"
    sys.stdout.write(f"{spec.name} ({model.identity.precision}): {built}, checked\n")


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
