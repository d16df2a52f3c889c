"""The throughput benchmark from end to end at its smallest: what it prints can be read."""

import contextlib
import io
import json
from dataclasses import replace

import pytest

from pixpod_bench.emulator.__main__ import main
from pixpod_bench.emulator.throughput import Cell, Rate

FLAGS = "--workers 1 --concurrency 4 --rounds 1 --load-seconds 0.5"
RATE = Rate(jobs_per_s=100, cpu_ms_per_job=1, server_load=0.1, machine_load=0.5)
JUDGED = Cell(num_workers=4, concurrency=32, emulator=RATE, ceiling=RATE, others_load=0.0)


@pytest.fixture(scope="module")
def printed():
    """Tables of a run with one worker, as rows by title, and the document of its last line."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(["throughput", *FLAGS.split()]) == 0
    *tables, last_line = output.getvalue().split("\n\n")
    return [rows_of(table) for table in tables], json.loads(last_line)


def rows_of(table):
    titles, line, *rows = (
        [cell.strip() for cell in row.strip("| ").split("|")] for row in table.splitlines()
    )
    assert set("".join(line)) == set("-: ") - {" "}
    return [dict(zip(titles, row, strict=True)) for row in rows]


def test_the_first_table_puts_the_emulator_beside_the_ceiling(printed):
    ((row,), _), _ = printed
    assert (row["workers"], row["concurrency"]) == ("1", "4")
    assert float(row["emulator jobs/s"]) > 0
    assert float(row["ceiling jobs/s"]) > 0
    assert float(row["CPU ms/job"]) > 0
    assert row["ratio"].endswith("%")


def test_the_second_table_has_the_api_at_full_and_at_half_load(printed):
    (_, (full, half)), _ = printed
    assert (full["load"], half["load"]) == ("full", "half")
    for row in (full, half):
        assert float(row["jobs/s"]) > 0
        assert 0 < float(row["run p50 ms"]) <= float(row["run p99 ms"])
        assert 0 < float(row["status p50 ms"]) <= float(row["status p99 ms"])
    assert float(half["requests/s"]) < float(full["requests/s"])


def test_the_last_line_says_the_same_as_json(printed):
    ((row,), (full, _)), document = printed
    (cell,) = document["cells"]
    assert document["benchmark"] == "emulator-throughput"
    assert f"{cell['emulator']['jobs_per_s']:.1f}" == row["emulator jobs/s"]
    assert f"{document['load']['full']['requests_per_s']:.0f}" == full["requests/s"]
    assert {"cores", "python", "runpod", "aiohttp"} <= document["run"].keys()


def test_four_workers_of_32_are_judged_by_the_ceiling():
    assert not replace(JUDGED, emulator=replace(RATE, jobs_per_s=71)).is_too_slow
    assert replace(JUDGED, emulator=replace(RATE, jobs_per_s=69)).is_too_slow


def test_what_the_sdk_itself_holds_up_is_not_judged():
    slow = replace(RATE, jobs_per_s=1)
    assert not replace(JUDGED, concurrency=8, emulator=slow).is_too_slow
