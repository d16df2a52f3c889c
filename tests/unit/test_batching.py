"""Which requests run together."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.factories import make_request

from pixpod.engine.scheduling.batching import (
    BUCKETS,
    FairQueue,
    Waiting,
    choose_batch,
    is_isolated,
    max_batch_size,
)
from pixpod.families import FAMILIES
from pixpod.job import Quality

KEYS = [batch_key_of(make_request(width=width)) for width in (64, 128, 192)]


def waiting(ticket, *, key=KEYS[0], num_rows=1, alone=False):
    return Waiting(ticket=ticket, key=key, num_rows=num_rows, is_isolated=alone)


def chosen(*entries, limit=8):
    shares = choose_batch(entries, FairQueue(), lambda key: limit)
    return [(share.ticket, share.num_rows) for share in shares]


def test_nobody_waits_for_an_idle_device():
    assert chosen() == []
    assert chosen(waiting(1)) == [(1, 1)]


def test_those_of_one_kind_are_drawn_together_in_order_of_arrival():
    assert chosen(waiting(1), waiting(2, key=KEYS[1]), waiting(3)) == [(1, 1), (3, 1)]


def test_batch_is_a_bucket():
    assert chosen(*(waiting(number) for number in range(7))) == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_request_is_split_where_the_bucket_ends():
    assert chosen(waiting(1, num_rows=3), waiting(2, num_rows=3)) == [(1, 3), (2, 1)]


def test_limit_of_the_device_holds():
    assert chosen(waiting(1, num_rows=8), limit=2) == [(1, 2)]


def test_deterministic_request_has_a_batch_of_its_own():
    assert chosen(waiting(1, num_rows=3, alone=True), waiting(2)) == [(1, 1)]
    assert chosen(waiting(1), waiting(2, alone=True), waiting(3)) == [(1, 1), (3, 1)]


@pytest.mark.parametrize(
    ("changes", "alone"),
    [({}, False), ({"deterministic": True}, True), ({"quality": Quality.TURBO}, True)],
    ids=["plain", "deterministic", "turbo"],
)
def test_what_runs_alone(changes, alone):
    assert is_isolated(make_request(**changes)) is alone


FREE = {
    "prompt": "x",
    "prompt_2": "y",
    "negative_prompt": "z",
    "seeds": (7,),
    "truncate_long_prompt": True,
    "deterministic": True,
}
SHARED = {
    "model": "sd15-tiny",
    "width": 128,
    "height": 128,
    "num_inference_steps": 3,
    "guidance_scale": 1.0,
    "true_cfg_scale": 2.0,
    "max_sequence_length": 48,
    "scheduler": "DDIMScheduler",
    "quality": Quality.TURBO,
}


def test_all_fields_of_a_request_are_either_free_or_shared():
    names = {field.name for field in fields(make_request())}
    assert names == FREE.keys() | SHARED.keys()
    assert not FREE.keys() & SHARED.keys()


@pytest.mark.parametrize("field", FREE)
def test_free_field_does_not_part(field):
    assert batch_key_of(make_request(**{field: FREE[field]})) == batch_key_of(make_request())


@pytest.mark.parametrize("field", SHARED)
def test_shared_field_parts(field):
    assert batch_key_of(make_request(**{field: SHARED[field]})) != batch_key_of(make_request())


def key_of(side_px, text=None):
    return replace(KEYS[0], width=side_px, height=side_px, max_sequence_length=text)


@pytest.mark.parametrize(
    ("family", "key", "rows"),
    [
        (FAMILIES["flux"], key_of(1024, 512), 1),
        (FAMILIES["flux"], key_of(2048, 512), 1),
        (FAMILIES["flux"], key_of(512, 512), 2),
        (FAMILIES["flux"], key_of(512, 256), 2),
        (FAMILIES["flux"], key_of(256, 256), 8),
        (FAMILIES["sdxl"], key_of(1024), 8),
        (FAMILIES["sdxl"], key_of(1408), 4),
        (FAMILIES["sd15"], key_of(512), 8),
        (FAMILIES["sd15"], key_of(768), 2),
    ],
)
def test_token_budget(family, key, rows):
    assert max_batch_size(family, key) == rows


ENTRIES = st.lists(
    st.tuples(st.sampled_from(KEYS), st.integers(1, 9), st.booleans()), min_size=1, max_size=12
).map(
    lambda drawn: [
        waiting(ticket, key=key, num_rows=rows, alone=alone)
        for ticket, (key, rows, alone) in enumerate(drawn)
    ]
)


@given(ENTRIES, st.sampled_from(BUCKETS))
def test_every_batch_is_of_one_kind_and_within_limits(entries, limit):
    shares = choose_batch(entries, FairQueue(), lambda key: limit)
    by_ticket = {entry.ticket: entry for entry in entries}
    total = sum(share.num_rows for share in shares)
    assert total in BUCKETS
    assert total <= limit
    assert len({by_ticket[share.ticket].key for share in shares}) == 1
    assert all(1 <= share.num_rows <= by_ticket[share.ticket].num_rows for share in shares)
    assert not any(by_ticket[share.ticket].is_isolated for share in shares) or total == 1


@given(ENTRIES, st.sampled_from(BUCKETS), st.data())
def test_every_row_is_drawn_once(entries, limit, data):
    turns, left = FairQueue(), {entry.ticket: entry for entry in entries}
    rows = sum(entry.num_rows for entry in entries)
    for _ in range(rows):
        shares = choose_batch(list(left.values()), turns, lambda key: limit)
        if shares:
            turns.charge(left[shares[0].ticket].key, data.draw(st.floats(0.01, 10)))
        for share in shares:
            entry = left[share.ticket]
            left[share.ticket] = replace(entry, num_rows=entry.num_rows - share.num_rows)
            if not left[share.ticket].num_rows:
                del left[share.ticket]
    assert not left


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.integers(10, 60))
def test_groups_that_always_wait_have_equal_parts_of_the_device(costs, num_batches):
    """No two of them differ by more than one batch of each."""
    turns, had = FairQueue(), dict.fromkeys(KEYS, 0.0)
    for _ in range(num_batches):
        group = turns.first(KEYS)
        cost_s = costs[KEYS.index(group)]
        turns.charge(group, cost_s)
        had[group] += cost_s
        assert max(had.values()) - min(had.values()) <= 2 * max(costs) + 1e-6


def test_who_comes_late_neither_claims_the_past_nor_pays_for_it():
    turns = FairQueue()
    for _ in range(10):
        assert turns.first(KEYS[:1]) == KEYS[0]
        turns.charge(KEYS[0], 1.0)
    order = []
    for _ in range(6):
        order.append(turns.first(KEYS[:2]))
        turns.charge(order[-1], 1.0)
    assert order.count(KEYS[1]) == 3
    assert order[0] == KEYS[1], "the one that had nothing is first"
    assert order[1] == KEYS[0], "and the other one waits for one batch only"
