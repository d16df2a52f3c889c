"""Figures to tables, ratios first, and to JSON. Runs nothing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pixpod_bench.throughput.cost import Comparison
from pixpod_bench.throughput.figures import Verdict
from pixpod_bench.throughput.memory import LIMIT_PERCENT, PER_JOBS, Growth
from pixpod_bench.throughput.mixed import Mixed
from pixpod_bench.throughput.other_steps import OtherSteps
from pixpod_bench.throughput.overhead import LIMIT_MS, Overhead
from pixpod_bench.throughput.same_size import LEAST_GAIN, SameSize


@dataclass(slots=True, kw_only=True)
class Results:
    """What has been measured so far; None or empty for a part that was not asked for."""

    overheads: Sequence[Overhead] = ()
    same_size: Sequence[SameSize] = ()
    other_steps: OtherSteps | None = None
    mixed: Mixed | None = None
    growth: Growth | None = None
    cost: Comparison | None = None

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Of replies with bills: from zero, then of the workers that had mixed jobs."""
        from_zero = (self.cost,) if self.cost else ()
        return (*from_zero, *(self.mixed.costs if self.mixed else ()))

    def document(self) -> dict[str, object]:
        """All figures, for JSON."""
        return {
            "targets": [{**asdict(each), "is_met": each.is_met} for each in self.verdicts()],
            "overhead": [asdict(each) for each in self.overheads],
            "same_size": [asdict(each) for each in self.same_size],
            "other_steps": self.other_steps and asdict(self.other_steps),
            "mixed": self.mixed and asdict(self.mixed),
            "memory": self.growth and asdict(self.growth),
            "cost": [asdict(each) for each in self.comparisons],
        }

    def verdicts(self) -> list[Verdict]:
        found = [
            Verdict(
                target="(a) added beside encoding, ms",
                subject=each.model,
                value=each.beside_encoding_ms,
                limit=LIMIT_MS,
                at_least=False,
            )
            for each in self.overheads
        ]
        found += [
            Verdict(
                target="(b) batching alone, same size",
                subject=each.model,
                value=each.gain.median,
                limit=LEAST_GAIN,
                at_least=True,
            )
            for each in self.same_size
        ]
        if self.growth:
            found.append(
                Verdict(
                    target=f"(d) growth in {PER_JOBS} jobs, %",
                    subject="engine",
                    value=self.growth.percent,
                    limit=LIMIT_PERCENT,
                    at_least=False,
                )
            )
        return found + [
            Verdict(
                target="(e) shares over the bill's run",
                subject=each.side,
                value=each.share_of_run,
                limit=1.0,
                at_least=False,
            )
            for each in self.comparisons
        ]


def format_overheads(overheads: Sequence[Overhead]) -> str:
    rows = [
        (
            each.model,
            str(each.ratio),
            f"{each.added_ms:.1f}",
            f"{each.phases_ms['encode']:.1f}",
            f"{each.beside_encoding_ms:.1f}",
            f"{each.bare_ms:.1f}",
            f"{each.handler_ms:.1f}",
            str(each.levels_apart),
        )
        for each in overheads
    ]
    titles = ("model", "handler / bare", "added ms", "encode ms", "beside encoding ms")
    table = _table((*titles, "bare ms", "handler ms", "levels apart"), rows)
    phases = [phase for phase in overheads[0].phases_ms if phase not in ("encode", "total")]
    spent = [
        (
            each.model,
            *(f"{each.phases_ms[phase]:.1f}" for phase in phases),
            f"{each.phases_ms['encode']:.1f}",
            f"{each.between_ms:.1f}",
        )
        for each in overheads
    ]
    breakdown = _table(("phases of the handler, ms", *phases, "encode", "between"), spent)
    return f"\n(a) Handler over bare pipeline\n\n{table}\n{breakdown}"


def format_same_size(gains: Sequence[SameSize]) -> str:
    rows = [
        (
            each.model,
            str(each.gain),
            f"{each.off_images_per_s:.1f}",
            f"{each.on_images_per_s:.1f}",
            f"{each.off_device_ms:.1f}",
            f"{each.on_device_ms:.1f}",
            str(each.levels_apart),
        )
        for each in gains
    ]
    titles = ("model", "batching on / off", "images/s off", "on", "device ms/image off", "on")
    title = f"(b) Batching alone: {gains[0].jobs} jobs of one size at once, engine without SDK"
    return f"\n{title}\n\n{_table((*titles, 'levels apart'), rows)}"


def format_other_steps(found: OtherSteps) -> str:
    row = (
        str(found.gain),
        f"{found.as_asked_images_per_s:.2f}",
        f"{found.all_the_same_images_per_s:.2f}",
        str(found.jobs),
        str(found.held),
    )
    titles = ("steps all the same / as asked", "images/s as asked", "all the same", "jobs", "held")
    title = "(b2) Jobs with other numbers of steps do not share a batch"
    return f"\n{title}\n\n{_table(titles, [row])}"


def format_mixed(mixed: Mixed) -> str:
    gains = _table(
        ("images per second of ...", "ratio"),
        [(each.title, str(each.ratio)) for each in mixed.gains],
    )
    rows = [
        (
            each.side,
            str(each.jobs),
            f"{each.images_per_s:.2f}",
            f"{each.latency_p50_s:.2f}",
            f"{each.latency_p95_s:.2f}",
            _seconds(each.held_p50_s),
            _seconds(each.held_p95_s),
            str(each.levels_apart),
        )
        for each in mixed.sides
    ]
    titles = ("side", "jobs", "images/s", "p50 s", "p95 s", "held p50 s", "held p95 s")
    sides = _table((*titles, "levels apart"), rows)
    return f"\n(c) Mixed jobs\n\n{gains}\n{sides}"


def format_growth(growth: Growth) -> str:
    row = (
        f"{growth.percent:+.2f} %",
        f"{growth.start_bytes / 2**20:.0f}",
        f"{growth.sampled_bytes[-1] / 2**20:.0f}",
        str(growth.warm_up_jobs),
        str(growth.jobs),
    )
    titles = (f"slope per {PER_JOBS} jobs", "MiB after warm-up", "MiB at the end")
    return f"\n(d) Memory of the engine\n\n{_table((*titles, 'warm-up jobs', 'jobs'), [row])}"


def format_costs(comparisons: Sequence[Comparison]) -> str:
    rows = [
        (
            each.side,
            f"{each.share_of_run:.2f}",
            f"{each.share_of_bill:.2f}",
            str(each.jobs),
            f"{each.shares_s:.1f}",
            f"{each.run_s:.1f}",
            f"{each.start_s:.1f}",
            f"{each.idle_s:.1f}",
            str(each.billed_s),
            f"{each.usd.bill_usd:.5f}",
            f"{each.usd.jobs_usd:.5f}",
        )
        for each in comparisons
    ]
    titles = ("side", "shares / run", "shares / bill", "jobs", "shares s", "run s", "start s")
    title = "(e) Cost in replies beside the emulator's bill"
    return f"\n{title}\n\n{_table((*titles, 'idle s', 'billed s', 'bill USD', 'jobs USD'), rows)}"


def format_verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = [
        (
            each.target,
            each.subject,
            f"{each.value:.2f}",
            f"{'>=' if each.at_least else '<='} {each.limit:g}",
            "met" if each.is_met else "MISSED",
        )
        for each in verdicts
    ]
    return f"\nTargets\n\n{_table(('target', 'of', 'figure', 'wanted', ''), rows)}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [titles, ["-" * width for width in widths], *rows]
    return "".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in lines
    )
