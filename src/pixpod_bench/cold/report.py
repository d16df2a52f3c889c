"""Timings to tables and to JSON, with what is needed to judge them: machine, versions, load."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pixpod_bench.cold.runs import Missing, Timing, Verdict

PACKAGES = ("torch", "torchao", "diffusers", "transformers", "safetensors", "runpod", "xxhash")


def describe_machine() -> dict[str, object]:
    """To be called first: how busy others keep the machine is part of it."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "processor": _first("/proc/cpuinfo", "model name"),
        "host_memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_before": round(os.getloadavg()[0], 2),
        "python": sys.version.split()[0],
        **{package: _version(package) for package in PACKAGES},
    }


def format_timings(title: str, timings: Sequence[Timing], reference: str) -> str:
    """A table of one part; `reference` is the name whose speed is 1, where it was measured."""
    if not timings:
        return ""
    references = {(t.case, t.state): t.median_s for t in timings if t.name == reference}
    rows = [
        (
            timing.case,
            timing.name,
            timing.state,
            f"{timing.median_s:.2f}",
            f"{timing.spread_percent:.0f} %",
            _number(timing.gigabytes_per_s, "{:.2f}"),
            _number(_ratio(references.get((timing.case, timing.state)), timing), "{:.2f}"),
        )
        for timing in timings
    ]
    titles = ("case", "what", "page cache", "median s", "spread", "GB/s", "speed")
    return f"\n{title} (speed: {reference} is 1)\n\n{_table(titles, rows, words=3)}"


def format_verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = [
        (
            verdict.target,
            verdict.case,
            verdict.state,
            f"{verdict.ratio:.2f}",
            f"{verdict.lowest:.2f} ... {verdict.highest:.2f}",
            f"{'>=' if verdict.at_least else '<='} {verdict.limit}",
            "met" if verdict.is_met else "MISSED",
        )
        for verdict in verdicts
    ]
    titles = ("target", "case", "page cache", "ratio", "by round", "wanted", "")
    return f"\nTargets\n\n{_table(titles, rows, words=3)}" if rows else ""


def format_missing(missing: Sequence[Missing]) -> str:
    lines = [f"  {each.name} ({each.case}): {each.reason}\n" for each in missing]
    return "".join(["\nNot here\n\n", *lines]) if lines else ""


def timing_document(timing: Timing) -> dict[str, object]:
    return {
        "case": timing.case,
        "name": timing.name,
        "page_cache": timing.state,
        "seconds": [round(seconds, 4) for seconds in timing.seconds],
        "median_s": round(timing.median_s, 4),
        "spread_percent": round(timing.spread_percent, 1),
        "size_bytes": timing.size_bytes,
        "gigabytes_per_s": timing.gigabytes_per_s and round(timing.gigabytes_per_s, 3),
        **({"details": dict(timing.details)} if timing.details else {}),
    }


def verdict_document(verdict: Verdict) -> dict[str, object]:
    return {**asdict(verdict), "is_met": verdict.is_met}


def document(
    benchmark: str, command: str, machine: Mapping[str, object], results: Mapping[str, object]
) -> dict[str, object]:
    return {"benchmark": benchmark, "command": command, "machine": machine, **results}


def _ratio(reference_s: float | None, timing: Timing) -> float | None:
    return None if reference_s is None else reference_s / timing.median_s


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """The first columns to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [titles, ["-" * width for width in widths], *rows]
    return "".join(
        "  ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in lines
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _first(path: str, field: str) -> str | None:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(field))
    return next(values, None)
