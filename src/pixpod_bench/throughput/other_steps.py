"""What it costs that jobs with other numbers of steps cannot share a batch.

An engine that let jobs join and leave between steps would batch them; this is the most that it
could gain where jobs keep coming.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from pixpod_bench.throughput.alone import draw_all, running_engine
from pixpod_bench.throughput.deployment import environ
from pixpod_bench.throughput.figures import Ratio, in_turns, ratio_of
from pixpod_bench.throughput.workload import STEPS, mixed_jobs

AS_ASKED, ALL_THE_SAME = "as asked", "all the same"
MEAN_STEPS = round(sum(steps * share for steps, share in STEPS.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherSteps:
    """`gain` is images per second if all jobs have the mean number of steps, over those as they
    are asked for: the same number of steps in all, nearly.
    """

    jobs: int
    held: int
    gain: Ratio
    as_asked_images_per_s: float
    all_the_same_images_per_s: float


def measure_other_steps(
    num_jobs: int, held: int, rounds: int, on_run: Callable[[], object] = lambda: None
) -> OtherSteps:
    """The engine alone, with batching; `held` jobs at a time, the next as soon as one is done."""
    with running_engine(environ(is_batching=True)) as engine:

        def run(side: str, seed: int) -> float:
            jobs = mixed_jobs(num_jobs, seed)
            if side == ALL_THE_SAME:
                jobs = [replace(job, num_inference_steps=MEAN_STEPS) for job in jobs]
            drawn = draw_all(engine, jobs, at_once=held)
            return len(drawn) / max(each.done_s for each in drawn)

        sides = {side: partial(run, side) for side in (AS_ASKED, ALL_THE_SAME)}
        for warm_up in sides.values():
            warm_up(rounds)
        found = in_turns(sides, rounds, on_run)
    return OtherSteps(
        jobs=num_jobs,
        held=held,
        gain=ratio_of(found[ALL_THE_SAME], found[AS_ASKED]),
        as_asked_images_per_s=statistics.median(found[AS_ASKED]),
        all_the_same_images_per_s=statistics.median(found[ALL_THE_SAME]),
    )
