"""Ratios of this checkout to another one, measured in alternating pairs in one run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pixpod_bench.figures import Ratio, Verdict, ratio_of
from pixpod_bench.report import Columns, table

LIMIT = 1.05
"""The highest value that the 95 % interval of a median ratio may reach."""

LEAST_PAIRS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A ratio in which more than 1 means that this checkout is worse."""

    what: str
    subject: str
    ratio: Ratio

    @classmethod
    def of(
        cls, what: str, subject: str, above: Sequence[float], below: Sequence[float]
    ) -> "Compared":
        return cls(what=what, subject=subject, ratio=ratio_of(above, below))


_COLUMNS: Columns[Compared] = (
    ("of", lambda each: each.subject),
    ("median ratio [95 % interval]", lambda each: str(each.ratio)),
    ("pairs", lambda each: str(each.ratio.pairs)),
)


def compared_table(found: Iterable[Compared]) -> str:
    """Return the ratios; the interval is from order statistics (see `figures.median_interval`)."""
    title = "This checkout / base (above 1: worse)"
    return table(title, _COLUMNS, [(each.what, each) for each in found], words=1)


def compared_verdicts(found: Iterable[Compared]) -> list[Verdict]:
    """Judge the upper ends of the intervals; with too few pairs there is no verdict."""
    return [
        Verdict(
            target=f"{each.what}: upper end of the interval",
            subject=each.subject,
            value=each.ratio.high if each.ratio.pairs >= LEAST_PAIRS else None,
            limit=LIMIT,
            at_least=False,
        )
        for each in found
    ]
