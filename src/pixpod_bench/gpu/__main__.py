"""The tests and the benchmark of a CUDA machine, in one command.

Runs the tests marked `gpu`, then measures full-size FLUX, SDXL and SD 1.5 with random weights,
slice by slice and the most important first, beside diffusers itself. Each result is written to a
journal in --state at once; with --resume a later call measures what the journal lacks, the tests
included. Every call ends with tables, one line of JSON, and gpu.json, gpu.txt, gpu.svg and
gpu.jsonl in --out.

Exits 1 if a test or a scenario failed, 2 if it could not begin, 3 if the device was lost.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pixpod.errors import DeviceUnavailable
from pixpod_bench.gpu.results import Journal, OtherMachine, TestRun
from pixpod_bench.gpu.slices import FULL_SIZE, SLICES, TINY, make_slices
from pixpod_bench.machine import ROOT, Deadline, describe_machine
from pixpod_bench.report import command_line, new_parser, publish

FAILED, NOT_BEGUN, LOST = 1, 2, 3
TESTS = "tests"
_LONGEST_TESTS_S = 300.0


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    options.out, options.state = options.out.resolve(), options.state.resolve()
    logging.basicConfig(level=logging.WARNING)
    try:
        return _run(options, Deadline(minutes=options.minutes))
    except (DeviceUnavailable, OtherMachine) as exc:
        sys.stderr.write(f"scripts/gpu: {exc}\n")
        return NOT_BEGUN


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("gpu", __doc__)
    add = parser.add_argument
    slices = "; ".join(f"{name}, {about}" for name, about in SLICES.items())
    chosen = f"measure this one only; may be repeated. {TESTS}, the tests; {slices}"
    add("--slice", action="append", choices=(TESTS, *SLICES), metavar="NAME", help=chosen)
    add("--resume", action="store_true", help="measure what the journal lacks")
    add("--report", action="store_true", help="measure nothing, report what the journal has")
    add("--minutes", type=float, metavar="N", help="begin nothing that would not end in N minutes")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--tiny", action="store_true", help="tiny architectures: a rehearsal, also on a CPU")
    state = "journal and random weights (29 GB), kept between calls; default: build/gpu-state"
    add("--state", type=Path, metavar="DIR", default=ROOT / "build" / "gpu-state", help=state)
    add("--warmups", type=int, default=2, metavar="N", help="default: 2")
    add("--repeats", type=int, default=5, metavar="N", help="default: 5")
    return parser


def _run(options: argparse.Namespace, deadline: Deadline) -> int:
    """Run the tests and slices. Raises DeviceUnavailable, OtherMachine."""
    from pixpod.engine.device import find_device
    from pixpod.engine.loading.model_loading import silence_libraries
    from pixpod_bench.gpu.report import Report

    path = options.state / "gpu.jsonl"
    if options.report:
        journal = Journal(path)
        if not journal.machine:
            sys.stderr.write(f"scripts/gpu: expected results in {path}, got none\n")
            return NOT_BEGUN
    else:
        silence_libraries()
        find_device(options.device)
        options.state.mkdir(parents=True, exist_ok=True)
        if not options.resume:
            path.unlink(missing_ok=True)
        journal = Journal.continued(path, describe_machine(options.device))
    left_out: list[str] = []
    lost = None if options.report else _measure(options, deadline, journal, left_out)
    report = Report(journal.entries(), journal.machine, left_out)
    publish(options.out, "gpu", report.document(command_line("gpu")), report.tables())
    report.draw(options.out / "gpu.svg")
    shutil.copy(path, options.out)
    if lost:
        sys.stderr.write(f"scripts/gpu: {lost}\n")
        return LOST
    return FAILED if report.has_failed else 0


def _measure(
    options: argparse.Namespace, deadline: Deadline, journal: Journal, left_out: list[str]
) -> str | None:
    """Return the reason why the device was lost, None if it was not."""
    import torch

    from pixpod_bench.gpu.runner import DeviceLost, Runner

    chosen = options.slice or (TESTS, *SLICES)
    if TESTS in chosen and not journal.has(TESTS, TESTS):
        if deadline.allows(_LONGEST_TESTS_S):
            journal.add(TESTS, TESTS, _run_tests(options))
        else:
            left_out.append(TESTS)
    runner = Runner(
        device=torch.device(options.device),
        warmups=options.warmups,
        repeats=options.repeats,
        deadline=deadline,
        journal=journal,
        state=options.state,
        left_out=left_out,
    )
    try:
        for name, scenarios in make_slices(TINY if options.tiny else FULL_SIZE).items():
            if name in chosen:
                runner.run(name, scenarios)
    except DeviceLost as exc:
        return str(exc)
    return None


def _run_tests(options: argparse.Namespace) -> TestRun:
    """Run pytest in a process of its own, so that the benchmark starts with an empty device.

    Warnings do not fail: a rented machine may have other versions of libraries.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    choice = ["tests/gpu", "-m", "gpu", "--confcutdir=tests/gpu", f"--device={options.device}"]
    output = ["-W", "default", "-p", "no:cacheprovider", f"--junitxml={options.out / 'pytest.xml'}"]
    with (options.out / "pytest.txt").open("w+", encoding="utf-8") as log:
        try:
            run = subprocess.run(  # noqa: S603 (our own arguments, no shell)
                [sys.executable, "-m", "pytest", *choice, *output],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=_LONGEST_TESTS_S,
            )
        except subprocess.TimeoutExpired:
            return TestRun(exit_code=FAILED, summary="the tests did not end in time: pytest.txt")
        log.seek(0)
        last_line = ["", *log.read().strip().splitlines()][-1]
    return TestRun(exit_code=run.returncode, summary=last_line.strip("= "))


if __name__ == "__main__":
    sys.exit(main())
