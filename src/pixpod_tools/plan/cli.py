"""Plan which components of models stay on a GPU, which are offloaded, and the memory for images.

Needs no GPU and no weights: sizes are those of the published models, or of a weights directory.

  scripts/plan --models flux-dev=float8_dynamic,sdxl --gpu "RTX 4090"
  scripts/plan --weights weights --memory-gib 24 --out plan.svg
  scripts/plan --models sdxl --catalog nets.toml --extras canny --stacks studio --gpu L40S
  scripts/plan --models sdxl --presets presets.toml --stacks portrait --gpu L40S

The default precision is the one that a compiling worker chooses on that GPU. With both --gpu and
--memory-gib, only so much of the GPU's memory may be used (PIXPOD_MEMORY_LIMIT_GB). The last line
is JSON.
"""

import argparse
import sys
from pathlib import Path

from pixpod.catalog import load_catalog
from pixpod.contract.stacks import load_presets
from pixpod.engine.memory.needs import NoFootprint
from pixpod.engine.memory.residency import make_plan
from pixpod.errors import WorkerError
from pixpod.extras import choose_extras, load_extras
from pixpod.stacks import parse_stacks
from pixpod.weights.manifest import names_in, read_manifest
from pixpod_tools.chart_path import FORMATS, chart_path
from pixpod_tools.plan.report import format_plan, plan_as_json
from pixpod_tools.plan.served import find_needs, find_target, served_models


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 1 if the models do not fit; the message says what would."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.gpu is None and options.memory_gib is None:
        parser.error("--gpu or --memory-gib is needed")
    if options.models is None and options.weights is None:
        parser.error("--models or --weights is needed")
    try:
        target = find_target(options.gpu, options.memory_gib)
        manifest = read_manifest(options.weights) if options.weights else {}
        entries = options.models or names_in(manifest, extras=False)
        catalog = load_catalog(options.catalog)
        models = served_models(entries, catalog)
        extras = choose_extras(
            options.extras,
            load_extras(options.catalog),
            models,
            names_in(manifest, extras=True),
            source="--extras",
        )
        presets = load_presets(options.presets, source="--presets")
        stacks = parse_stacks(options.stacks, models, extras, source="--stacks", presets=presets)
        needs = find_needs(entries, catalog, options.weights, target, extras=extras, stacks=stacks)
        plan = make_plan(needs, target.budget)
        if options.out:
            from pixpod_tools.plan.chart import save_chart  # matplotlib only where it is needed

            save_chart(target.title, plan, options.out)
    except (WorkerError, NoFootprint, OSError) as exc:
        sys.stderr.write(f"scripts/plan: {exc}\n")
        return 1
    sys.stdout.write(format_plan(target.title, plan) + plan_as_json(target.title, plan) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models", type=_listed, metavar="NAME[=PRECISION],...", help="default: all of --weights"
    )
    parser.add_argument("--weights", type=Path, metavar="DIR", help="a weights directory")
    parser.add_argument(
        "--extras", type=_listed, metavar="NAME,...", help="default: those of --weights"
    )
    parser.add_argument(
        "--stacks",
        type=_listed,
        default=[],
        metavar="STACK,...",
        help="what must fit together, as PIXPOD_STACKS has it",
    )
    parser.add_argument("--gpu", metavar="NAME", help='e.g. "RTX 4090"')
    parser.add_argument(
        "--memory-gib", type=_gib, metavar="N", help="the part of a GPU that may be used"
    )
    parser.add_argument(
        "--catalog", type=Path, metavar="FILE", help="further models and extras, as TOML"
    )
    parser.add_argument(
        "--presets",
        type=Path,
        metavar="FILE",
        help="further presets that stacks may name, as PIXPOD_PRESETS has them",
    )
    parser.add_argument(
        "--out", type=chart_path, metavar="FILE", help=f"also a chart: {', '.join(FORMATS)}"
    )
    return parser


def _listed(text: str) -> list[str]:
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if not entries:
        raise argparse.ArgumentTypeError("expected names with commas between them")
    return entries


def _gib(text: str) -> float:
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib < 10_000:
        raise argparse.ArgumentTypeError(f"expected GiB above 0, such as 24, got {text}")
    return gib


if __name__ == "__main__":
    sys.exit(main())
