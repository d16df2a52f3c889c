"""What a worker's life and a job cost."""

import tomllib
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runpod_emulator.settings import DEFAULT_GPU
from runpod_emulator.workers.billing import Bill, Meter, cost_usd, job_cost_usd, load_prices

NOTHING = Bill(start_s=0.0, run_s=0.0, idle_s=0.0, billed_s=0)
FIRST_DAY = 1_790_000_000.0


def test_life_is_split_into_start_run_and_idle():
    meter = Meter(FIRST_DAY)
    meter.ready(FIRST_DAY + 3.5)
    meter.busy(FIRST_DAY + 4.0)
    meter.idle(FIRST_DAY + 10.25)
    meter.stopped(FIRST_DAY + 15.25)
    expected = Bill(start_s=3.5, run_s=6.25, idle_s=5.5, billed_s=16)
    assert meter.bill(FIRST_DAY + 15.25) == expected
    assert meter.bill(FIRST_DAY + 99.0) == expected


def test_bill_runs_on_while_the_worker_lives():
    meter = Meter(100.0)
    assert meter.bill(101.2).billed_s == 2
    meter.busy(102.0)
    assert meter.bill(104.5) == Bill(start_s=2.0, run_s=2.5, idle_s=0.0, billed_s=5)


def test_worker_that_never_became_ready_pays_for_its_start():
    meter = Meter(100.0)
    meter.stopped(107.1)
    assert meter.bill(200.0) == Bill(start_s=7.1, run_s=0.0, idle_s=0.0, billed_s=8)


def test_worker_without_a_process_costs_nothing():
    meter = Meter(None)
    meter.ready(5.0)
    meter.busy(6.0)
    meter.stopped(7.0)
    assert meter.bill(9.0) == NOTHING


def test_ready_again_does_not_interrupt_a_job():
    meter = Meter(0.0)
    meter.busy(1.0)
    meter.ready(2.0)
    assert meter.bill(3.0).run_s == 2.0


def test_nothing_counts_after_the_end():
    meter = Meter(0.0)
    meter.stopped(2.0)
    meter.busy(3.0)
    assert meter.bill(9.0) == Bill(start_s=2.0, run_s=0.0, idle_s=0.0, billed_s=2)


def test_time_that_goes_back_is_no_time():
    meter = Meter(10.0)
    meter.busy(20.0)
    meter.idle(15.0)
    assert meter.bill(12.0) == Bill(start_s=10.0, run_s=0.0, idle_s=0.0, billed_s=10)
    assert meter.bill(21.0).idle_s == 1.0


def test_whole_seconds_are_not_rounded_up_by_binary_fractions():
    for tenth in range(10):
        for whole_s in range(100):
            ended_at = (10 * whole_s + tenth) / 10
            assert Meter(tenth / 10).bill(ended_at).billed_s == whole_s


EVENTS = st.lists(
    st.tuples(
        st.sampled_from([Meter.ready, Meter.busy, Meter.idle, Meter.stopped]),
        st.integers(0, 100_000),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(EVENTS, st.integers(0, 5000), st.integers(0, 5000))
def test_parts_sum_to_the_life_and_only_grow(events, more_ms, still_more_ms):
    """Events are what happens, and how many milliseconds after the one before."""
    meter, now_ms, stopped_ms = Meter(0.0), 0, None
    for happen, gap_ms in events:
        now_ms += gap_ms
        happen(meter, now_ms / 1000)
        if happen is Meter.stopped and stopped_ms is None:
            stopped_ms = now_ms
    now_ms += more_ms
    life_ms = now_ms if stopped_ms is None else stopped_ms
    bill = meter.bill(now_ms / 1000)
    assert round((bill.start_s + bill.run_s + bill.idle_s) * 1000, 6) == life_ms
    assert 0 <= bill.billed_s * 1000 - life_ms < 1000
    later = meter.bill((now_ms + still_more_ms) / 1000)
    for part in ("start_s", "run_s", "idle_s", "billed_s"):
        assert getattr(later, part) >= getattr(bill, part) >= 0


def test_worker_costs_its_billed_seconds_and_a_job_its_own_time():
    rate = load_prices().usd_per_second(DEFAULT_GPU)
    assert cost_usd(16, rate) == 0.00496
    assert job_cost_usd(2500, rate) == 0.000775


def test_active_worker_has_its_own_rate_where_there_is_one():
    prices = load_prices()
    assert prices.usd_per_second("NVIDIA H200") == 0.00155
    assert prices.usd_per_second("NVIDIA H200", is_active=True) == 0.00124
    assert prices.usd_per_second("NVIDIA B200", is_active=True) == 0.0024


def test_worker_pays_for_each_of_its_gpus():
    prices = load_prices()
    assert prices.usd_per_second("NVIDIA L4", gpu_count=4) == pytest.approx(0.00076)


@pytest.mark.parametrize("gpu", ["NVIDIA GeForce GTX 1080", "cpu", ""])
def test_unknown_gpu_has_no_cost(gpu):
    rate = load_prices().usd_per_second(gpu)
    assert rate is None
    assert cost_usd(10, rate) is None
    assert job_cost_usd(10, rate) is None


def test_each_gpu_has_one_price_and_active_is_the_cheaper_one():
    text = (
        resources.files("runpod_emulator.workers")
        .joinpath("prices.toml")
        .read_text(encoding="utf-8")
    )
    groups = tomllib.loads(text)["prices"]
    names = [gpu for group in groups for gpu in group["gpus"]]
    assert len(names) == len(set(names))
    assert all(group.get("active", 0.0) < group["flex"] < 0.01 for group in groups)
