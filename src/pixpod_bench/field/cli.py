"""What this card does with the usual work: SD 1.5, SDXL and FLUX at usual sizes, steps and batches.

Draws through the worker's own engine, with the weights of PIXPOD_WEIGHTS_DIR, and with random ones
for models that it does not hold (baked first: FLUX takes 22 GB of disk, SDXL 7, SD 1.5 2). Prints a
table beside published figures, what 1,000 images cost at this card's price
(PIXPOD_USD_PER_GPU_SECOND, or the built-in list) and, last, one line of JSON; writes bench.json and
pictures into --out. Other settings of the worker, PIXPOD_PRECISION for one, hold as ever.

Exits 1 if a work could not be measured, 2 if it could not begin.
"""

import argparse
import json
import logging
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from pixpod.catalog import load_catalog
from pixpod.errors import DeviceUnavailable, InvalidSettings
from pixpod.pricing import PriceList
from pixpod.settings import Settings
from pixpod_bench.field.results import Figure, NotMeasured
from pixpod_bench.field.works import Work, load_published, load_works

FAILED, NOT_BEGUN = 1, 2


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    try:
        works = _works(options)
        settings = Settings.from_env(os.environ)
        return _run(options, works, settings)
    except (InvalidSettings, DeviceUnavailable) as exc:
        sys.stderr.write(f"scripts/bench: {exc}\n")
        return NOT_BEGUN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument(
        "--tiny", action="store_true", help="the tiny models: a rehearsal, also on a CPU"
    )
    parser.add_argument(
        "--models",
        type=lambda text: tuple(text.split(",")),
        metavar="NAME,NAME",
        help="of " + ", ".join(dict.fromkeys(work.model for work in load_works(tiny=False))),
    )
    parser.add_argument(
        "--random", action="store_true", help="random weights for all: time does not depend on them"
    )
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no work after N minutes")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="keep baked random weights there"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("bench_results"),
        help="default: %(default)s",
    )
    return parser


def _works(options: argparse.Namespace) -> tuple[Work, ...]:
    """Raises InvalidSettings for a model that is not among them."""
    works = load_works(tiny=options.tiny)
    known = tuple(dict.fromkeys(work.model for work in works))
    for model in options.models or ():
        if model not in known:
            raise InvalidSettings(f"--models {model}: accepted are {', '.join(known)}")
    return tuple(work for work in works if work.model in (options.models or known))


def _run(options: argparse.Namespace, works: tuple[Work, ...], settings: Settings) -> int:
    """Raises DeviceUnavailable."""
    from pixpod.engine.device import find_device, name_device
    from pixpod.engine.loading.pipelines import silence_libraries
    from pixpod_bench.field import chart, report
    from pixpod_bench.field.drawing import Field
    from pixpod_bench.report import describe_machine

    silence_libraries()
    device = find_device(options.device)
    if device.type != "cuda" and any(load_catalog()[work.model].requires_cuda for work in works):
        raise DeviceUnavailable("no CUDA device that works is here: --tiny rehearses on a CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    results: list[Figure | NotMeasured] = []
    with (
        tempfile.TemporaryDirectory(prefix="pixpod-bench-") as folder,
        tqdm(total=len(works), unit="work", file=sys.stderr) as bar,
    ):
        field = Field(
            environ=os.environ,
            weights_dir=settings.weights_dir,
            device=device,
            directory=options.cache_dir or Path(folder),
            is_random=options.random,
            repeats=options.repeats,
            deadline=time.perf_counter() + options.minutes * 60 if options.minutes else None,
            on_work=lambda work: bar.set_postfix_str(work.name),
        )
        for result in field.draw(works):
            results.append(result)
            bar.update()
    name = name_device(device)
    prices = PriceList.load(settings.usd_per_gpu_second)
    basis = prices.cost(name, 0).basis
    lines = report.make_lines(results, load_published(), prices, name)
    missing = [result for result in results if isinstance(result, NotMeasured)]
    command = shlex.join(["scripts/bench", *sys.argv[1:]])
    document = report.make_document(describe_machine(device), command, lines, missing, basis)
    text = json.dumps(document)
    (options.out / "bench.json").write_text(text + "\n", encoding="utf-8")
    chart.draw_charts(lines, options.out, name)
    sys.stdout.write(report.format_table(lines, missing, f"{name}: {basis}") + "\n" + text + "\n")
    return FAILED if missing else 0


if __name__ == "__main__":
    sys.exit(main())
