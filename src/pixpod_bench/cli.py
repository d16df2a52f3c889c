"""The tests and the benchmark of a CUDA machine, in one command.

Installs what is missing (from --wheels), runs the tests marked `gpu`, then measures full-size FLUX
and SDXL with random weights through the engine. Prints a table and, last, one line of JSON, and
writes gpu-bench.json, pytest.txt and pytest.xml into --out. Exits 1 if a test or a scenario failed.

`--only cold` measures the cold start instead, on files of 29 GB, and writes gpu-cold.json and
charts.
"""

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pixpod.errors import DeviceUnavailable
from pixpod_bench import requirements

if TYPE_CHECKING:
    import torch

    from pixpod_bench.measure import Failure, Row

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "gpu-site"


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    options.out = options.out.resolve()
    logging.basicConfig(level=logging.WARNING)
    deadline = time.perf_counter() + options.minutes * 60 if options.minutes else None
    try:
        requirements.provide(ROOT / "requirements-gpu.txt", options.wheels, SITE)
        requirements.add_optional(ROOT / "requirements-loaders.txt", options.wheels, SITE)
        device = _find_device(options.device)
    except (requirements.MissingPackages, DeviceUnavailable) as exc:
        sys.stderr.write(f"scripts/gpu: {exc}\n")
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    if options.only == "cold":
        return _run_cold(options, device, deadline)
    tests = None if options.only == "bench" else _run_tests(options)
    results = [] if options.only == "tests" else _run_bench(options, device, deadline)
    return _report(options, device, tests, results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny architectures: a rehearsal")
    parser.add_argument(
        "--only",
        choices=("tests", "bench", "cold"),
        help="instead of tests and bench; cold is the cold start, which needs 10 minutes by itself",
    )
    parser.add_argument(
        "--models",
        type=lambda text: tuple(text.split(",")),
        metavar="NAME,NAME",
        help="of the cold start: flux-dev,sdxl (both)",
    )
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="keep the cold start's files there"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="also FLUX with its blocks compiled, measured last"
    )
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="wheels to install missing packages from"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=ROOT / "gpu_results", help="default: gpu_results"
    )
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="begin no further model after N minutes"
    )
    parser.add_argument("--warmups", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: 5")
    return parser


def _run_tests(options: argparse.Namespace) -> dict[str, object]:
    """pytest in a process of its own, so that the benchmark starts with an empty device.

    Warnings do not fail: a card's machine has versions of libraries that we do not choose.
    """
    choice = ["tests/gpu", "-m", "gpu", "--confcutdir=tests/gpu", f"--device={options.device}"]
    output = ["-W", "default", "-p", "no:cacheprovider", f"--junitxml={options.out / 'pytest.xml'}"]
    command = [sys.executable, "-m", "pytest", *choice, *output]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(  # noqa: S603 (our own arguments, no shell)
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    (options.out / "pytest.txt").write_text(run.stdout, encoding="utf-8")
    sys.stdout.write(run.stdout)
    sys.stdout.flush()
    return {"exit_code": run.returncode, "summary": run.stdout.strip().splitlines()[-1].strip("= ")}


# --- after the packages are there: torch is imported below --------------------------------------


def _find_device(asked: str) -> "torch.device":
    from pixpod.engine import loading

    loading.silence_libraries()
    return loading.find_device(asked)


def _run_bench(
    options: argparse.Namespace, device: "torch.device", deadline: float | None
) -> "list[Row | Failure]":
    from pixpod.catalog import load_catalog
    from pixpod_bench import measure, scenarios

    pace = measure.Pace(warmups=options.warmups, repeats=options.repeats, deadline=deadline)
    table = scenarios.TINY if options.tiny else scenarios.FULL_SIZE
    chosen = [row for row in table if options.compiled or not row.variant.compiled]
    results: list[Row | Failure] = []
    for result in measure.measure_all(chosen, load_catalog(), device, pace):
        sys.stderr.write(f"{len(results) + 1}/{len(chosen)} {result.scenario}\n")
        results.append(result)
    return results


def _run_cold(options: argparse.Namespace, device: "torch.device", deadline: float | None) -> int:
    """In processes of its own only: the device must be theirs."""
    from pixpod_bench import report
    from pixpod_bench.cold import gpu
    from pixpod_bench.cold.report import describe_machine

    logging.getLogger("pixpod_bench.cold").setLevel(logging.INFO)
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    bench = gpu.GpuColdBench(
        device=device.type,
        models=options.models or (gpu.TINY if options.tiny else gpu.FULL_SIZE),
        repetitions=options.repeats,
        deadline=deadline,
        out=options.out,
        cache_dir=options.cache_dir,
        command=shlex.join(["scripts/gpu", *sys.argv[1:]]),
        machine={**describe_machine(), **report.describe_machine(device)},
    )
    return bench.run()


def _report(
    options: argparse.Namespace,
    device: "torch.device",
    tests: dict[str, object] | None,
    results: "list[Row | Failure]",
) -> int:
    from pixpod_bench import report
    from pixpod_bench.measure import Failure

    machine = report.describe_machine(device)
    document = report.make_report(
        machine, shlex.join(["scripts/gpu", *sys.argv[1:]]), tests, results
    )
    text = json.dumps(document)
    (options.out / "gpu-bench.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(report.format_table(results) + text + "\n")
    has_failed = any(isinstance(result, Failure) for result in results)
    return 1 if has_failed or (tests is not None and tests["exit_code"] != 0) else 0


if __name__ == "__main__":
    sys.exit(main())
