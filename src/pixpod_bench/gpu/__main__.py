"""The tests and the benchmark of a CUDA machine, in one command.

Installs what is missing (from --wheels), runs the tests marked `gpu`, then measures full-size FLUX,
SDXL and SD 1.5 with random weights, slice by slice and the most important first, beside diffusers
itself. Each result is written to gpu-bench.jsonl in --out at once; with --resume a later call goes
on after the last one. At the end of each call: tables, one line of JSON, gpu-bench.json, pictures.

Exits 1 if a test or a scenario failed, 2 if it could not begin, 3 if the device was lost.

`--only cold` measures the cold start instead, on files of 29 GB, and writes gpu-cold.json and
charts. `--only report` measures nothing and shows what is there.
"""

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pixpod.errors import DeviceUnavailable
from pixpod_bench import requirements
from pixpod_bench.results import Failure, Journal, OtherMachine
from pixpod_bench.slices import SLICES

if TYPE_CHECKING:
    import torch

    from pixpod_bench.scenarios import Slice

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "gpu-site"
JOURNAL = "gpu-bench.jsonl"

FAILED, NOT_BEGUN, LOST = 1, 2, 3


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    options.out = options.out.resolve()
    logging.basicConfig(level=logging.WARNING)
    deadline = time.perf_counter() + options.minutes * 60 if options.minutes else None
    try:
        requirements.provide(ROOT / "requirements-gpu.txt", options.wheels, SITE)
        requirements.add_optional(ROOT / "requirements-loaders.txt", options.wheels, SITE)
        if options.only == "report":
            return _show(options)
        device = _find_device(options.device)
        options.out.mkdir(parents=True, exist_ok=True)
        if options.only == "cold":
            return _run_cold(options, device, deadline)
        return _run(options, device, deadline)
    except (requirements.MissingPackages, DeviceUnavailable, OtherMachine) as exc:
        sys.stderr.write(f"scripts/gpu: {exc}\n")
        return NOT_BEGUN


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
        choices=("tests", "bench", "report", "cold"),
        help="instead of tests and bench; cold is the cold start, which needs 10 minutes by itself",
    )
    parser.add_argument(
        "--slice",
        action="append",
        choices=tuple(SLICES),
        metavar="NAME",
        help="measure this one only; may be repeated. In their order: "
        + "; ".join(f"{name}, {about}" for name, about in SLICES.items()),
    )
    parser.add_argument(
        "--resume", action="store_true", help="measure what --out has no result of yet"
    )
    parser.add_argument(
        "--models",
        type=lambda text: tuple(text.split(",")),
        metavar="NAME,NAME",
        help="of the cold start: flux-dev,sdxl (both)",
    )
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="keep baked random weights there"
    )
    parser.add_argument(
        "--compiled-dir", type=Path, metavar="DIR", help="packages that scripts/compile built"
    )
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="wheels to install missing packages from"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=ROOT / "gpu_results", help="default: gpu_results"
    )
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="begin nothing further after N minutes"
    )
    parser.add_argument("--warmups", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: 5")
    return parser


def _show(options: argparse.Namespace) -> int:
    journal = Journal(options.out / JOURNAL)
    if not journal.machine:
        sys.stderr.write(f"scripts/gpu: {options.out / JOURNAL} is not there, or has no results\n")
        return NOT_BEGUN
    _report(options, journal, None, [])
    return FAILED if _has_failed(journal) else 0


def _run(options: argparse.Namespace, device: "torch.device", deadline: float | None) -> int:
    from pixpod_bench import report

    path = options.out / JOURNAL
    if options.only != "tests" and not options.resume:
        path.unlink(missing_ok=True)
    journal = Journal.continued(path, report.describe_machine(device))
    tests = _run_tests(options) if options.only in (None, "tests") else None
    left_out: list[str] = []
    lost = None
    if options.only in (None, "bench"):
        lost = _measure(options, device, deadline, journal, left_out)
    _report(options, journal, tests, left_out)
    if lost:
        sys.stderr.write(f"scripts/gpu: {lost}\n")
        return LOST
    return FAILED if _has_failed(journal) or (tests and tests["exit_code"] != 0) else 0


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
    from pixpod.engine.device import find_device
    from pixpod.engine.loading.pipelines import silence_libraries

    silence_libraries()
    return find_device(asked)


def _measure(
    options: argparse.Namespace,
    device: "torch.device",
    deadline: float | None,
    journal: Journal,
    left_out: list[str],
) -> str | None:
    """Why the device was lost, if it was."""
    from pixpod.catalog import load_catalog
    from pixpod_bench.measure import Pace
    from pixpod_bench.running import DeviceLost, Runner

    with tempfile.TemporaryDirectory(prefix="pixpod-gpu-") as folder:
        runner = Runner(
            catalog=load_catalog(),
            device=device,
            pace=Pace(warmups=options.warmups, repeats=options.repeats, deadline=deadline),
            journal=journal,
            directory=options.cache_dir or Path(folder),
            compiled_dir=options.compiled_dir or Path(folder) / "compiled",
            left_out=left_out,
        )
        try:
            for chosen in _slices(options):
                runner.run(chosen)
        except DeviceLost as exc:
            return str(exc)
    return None


def _slices(options: argparse.Namespace) -> "tuple[Slice, ...]":
    """Those that were asked for, else all."""
    from pixpod_bench.scenarios import FULL_SIZE, TINY, make_slices

    scale = TINY if options.tiny else FULL_SIZE
    every = make_slices(scale, has_cudnn=options.device == "cuda")
    return tuple(each for each in every if each.name in (options.slice or (each.name,)))


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
    journal: Journal,
    tests: Mapping[str, object] | None,
    left_out: list[str],
) -> None:
    from pixpod_bench import gpu_charts, report

    entries = tuple(journal.entries())
    command = shlex.join(["scripts/gpu", *sys.argv[1:]])
    document = report.make_document(journal.machine, command, tests, entries, left_out)
    text = json.dumps(document)
    tables = report.format_tables(entries, left_out)
    (options.out / "gpu-bench.json").write_text(text + "\n", encoding="utf-8")
    (options.out / "gpu-bench.txt").write_text(tables, encoding="utf-8")
    gpu_charts.draw_charts(entries, options.out, str(journal.machine["device"]))
    sys.stdout.write(tables + "\n" + text + "\n")


def _has_failed(journal: Journal) -> bool:
    return any(isinstance(entry.result, Failure) for entry in journal.entries())


if __name__ == "__main__":
    sys.exit(main())
