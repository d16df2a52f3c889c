"""Workers that hold several jobs, with the real SDK on the emulated platform.

The worker is the product's, its engine a clock; `pixpod_bench.held_jobs` has longer bursts.
"""

import pytest
from pixpod_bench.held_jobs.__main__ import WORKLOADS, main
from pixpod_bench.held_jobs.burst import Place, run_bursts
from pixpod_bench.held_jobs.card import CardSpec
from pixpod_bench.held_jobs.handler import WorkerSpec

from runpod_emulator.settings import Scaler

NUM_JOBS = 48
NUM_WORKERS = 3
SCALER_VALUES = {Scaler.QUEUE_DELAY: 1.0, Scaler.REQUEST_COUNT: 4.0}

CARD = CardSpec(batch_s=0.28, row_s=0.22, max_rows=8, load_s=0.5)
"""A few-step model, for which the table has the largest number. It draws so slowly that two workers
alone would need six seconds: the third has come by then, although twelve start at a time.
"""

HELD = {"one": 1, "table": WORKLOADS["sdxl-4-steps"].max_held_jobs}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The same burst at the same time on four endpoints, by scaler and by how many are held."""
    places = {
        f"{scaler} {held}": Place(
            scaler=scaler,
            scaler_value=value,
            num_workers=NUM_WORKERS,
            worker=WorkerSpec(card=CARD, max_held_jobs=max_held_jobs),
        )
        for scaler, value in SCALER_VALUES.items()
        for held, max_held_jobs in HELD.items()
    }
    return run_bursts(places, tmp_path_factory.mktemp("held"), num_jobs=NUM_JOBS, steps=4)


@pytest.mark.parametrize("scaler", Scaler)
def test_all_workers_get_work_although_each_holds_several_jobs(outcomes, scaler):
    found = outcomes[f"{scaler} table"]
    assert len(found.jobs_by_worker) == NUM_WORKERS
    assert sum(found.jobs_by_worker) == NUM_JOBS
    assert found.num_left_out == 0


@pytest.mark.parametrize("scaler", Scaler)
def test_slowest_jobs_are_not_slower_than_one_by_one(outcomes, scaler):
    assert outcomes[f"{scaler} table"].p95_s <= outcomes[f"{scaler} one"].p95_s


def test_bench_prints_a_row_for_each_endpoint(capsys):
    arguments = "--jobs 4 --workers 1 --workloads sdxl-4-steps --scalers REQUEST_COUNT"
    assert main(arguments.split()) in (0, 1), "so few jobs prove nothing"
    titles, _, one, table, last_line = capsys.readouterr().out.splitlines()
    assert titles.startswith("| workload | scaler | workers | held |")
    assert one.startswith("| sdxl-4-steps | REQUEST_COUNT | 1 | 1 |")
    assert table.startswith("| sdxl-4-steps | REQUEST_COUNT | 1 | 9 |")
    assert last_line.startswith('{"benchmark": "held-jobs", "jobs": 4, "cells": [{')
