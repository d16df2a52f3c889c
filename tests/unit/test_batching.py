"""Batches are made of requests that may run together."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.factories import make_image_prompt, make_request

from pixpod.engine.scheduling.batching import (
    BUCKETS,
    FairQueue,
    QueuedRequest,
    choose_batch,
    is_isolated,
    max_batch_size,
)
from pixpod.families import FAMILIES
from pixpod.job import (
    Conditions,
    ControlOptions,
    GenerationRequest,
    InputImage,
    LongPrompt,
    Mode,
    Prompts,
    Quality,
    RawImage,
    RefinerOptions,
    Sampling,
    TextOptions,
    UpscalerOptions,
    WeightedText,
)
from pixpod.methods import batch_key_of

IMAGE = InputImage(raw=RawImage(width=1, height=1, pixels=b"rgb"), digest="x")
KEYS = [batch_key_of(make_request(width=width)) for width in (64, 128, 192)]


def queued(request_id, *, key=KEYS[0], num_images=1, alone=False):
    return QueuedRequest(request_id=request_id, key=key, num_images=num_images, is_isolated=alone)


def chosen(*entries, limit=8):
    allocations = choose_batch(entries, FairQueue(), lambda key: limit)
    return [(each.request_id, each.num_images) for each in allocations]


def test_nobody_waits_for_an_idle_device():
    assert chosen() == []
    assert chosen(queued(1)) == [(1, 1)]


def test_those_of_one_kind_share_a_batch_in_order_of_arrival():
    assert chosen(queued(1), queued(2, key=KEYS[1]), queued(3)) == [(1, 1), (3, 1)]


def test_batch_is_a_bucket():
    assert chosen(*(queued(number) for number in range(7))) == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_request_is_split_where_the_bucket_ends():
    assert chosen(queued(1, num_images=3), queued(2, num_images=3)) == [(1, 3), (2, 1)]


def test_limit_of_the_device_holds():
    assert chosen(queued(1, num_images=8), limit=2) == [(1, 2)]


def test_deterministic_request_has_a_batch_of_its_own():
    assert chosen(queued(1, num_images=3, alone=True), queued(2)) == [(1, 1)]
    assert chosen(queued(1), queued(2, alone=True), queued(3)) == [(1, 1), (3, 1)]


@pytest.mark.parametrize(
    ("changes", "alone"),
    [({}, False), ({"isolated": True}, True), ({"quality": Quality.TURBO}, True)],
    ids=["plain", "isolated", "turbo"],
)
def test_isolated_requests(changes, alone):
    assert is_isolated(make_request(**changes)) is alone


FREE = {
    "prompt": "x",
    "prompt_2": "y",
    "negative_prompt": "z",
    "weighted": {"prompt": WeightedText(parts=(("x", 1.5),))},
    "seeds": (7,),
    "isolated": True,
    "conditions": Conditions(image=IMAGE),
}
PROMPT = make_image_prompt()
SHARED = {
    "model": "sd15-tiny",
    "width": 128,
    "height": 128,
    "num_inference_steps": 3,
    "guidance_scale": 1.0,
    "true_cfg_scale": 2.0,
    "max_sequence_length": 48,
    "scheduler": "DDIMScheduler",
    "on_long_prompt": LongPrompt.TRUNCATE,
    "prompt_weights": True,
    "clip_skip": 1,
    "num_chunks": 2,
    "mode": Mode.INPAINT,
    "strength": 0.5,
    "quality": Quality.TURBO,
    "controls": (ControlOptions(net="canny", scale=1.0, start=0.0, end=1.0),),
    "image_prompt": PROMPT,
    "num_references": 1,
    "refiner": RefinerOptions(name="refiner", num_inference_steps=1),
    "upscaler": UpscalerOptions(name="upscaler", scale=2),
}


def test_all_fields_of_a_request_are_either_free_or_shared():
    parts = (GenerationRequest, Prompts, Sampling, TextOptions)
    names = {field.name for part in parts for field in fields(part)}
    assert names - {"prompts", "sampling", "text"} == FREE.keys() | SHARED.keys()
    assert not FREE.keys() & SHARED.keys()


@pytest.mark.parametrize("field", FREE)
def test_free_field_does_not_part(field):
    assert batch_key_of(make_request(**{field: FREE[field]})) == batch_key_of(make_request())


@pytest.mark.parametrize("field", SHARED)
def test_shared_field_parts(field):
    assert batch_key_of(make_request(**{field: SHARED[field]})) != batch_key_of(make_request())


@pytest.mark.parametrize(
    ("change", "is_shared"),
    [({"scale": 0.5}, False), ({"num_images": 2}, True), ({"adapter": "b"}, True)],
)
def test_adapter_and_number_of_images_part_and_their_scale_does_not(change, is_shared):
    keys = [
        batch_key_of(make_request(image_prompt=each))
        for each in (PROMPT, replace(PROMPT, **change))
    ]
    assert (keys[0] != keys[1]) is is_shared


def test_images_of_a_prompt_count_where_they_lengthen_the_text():
    plain = key_of(512, 512)
    key = replace(plain, image_prompt=make_image_prompt(num_images=4, text_tokens=4 * 729))
    assert max_batch_size(FAMILIES["flux"], plain) == 2
    assert max_batch_size(FAMILIES["flux"], key) == 1
    assert max_batch_size(FAMILIES["sdxl"], replace(key_of(512), image_prompt=PROMPT)) == 8


def key_of(side_px, text=None):
    options = TextOptions(max_sequence_length=text)
    return replace(KEYS[0], width=side_px, height=side_px, text=options)


@pytest.mark.parametrize(
    ("family", "key", "size"),
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
def test_token_budget(family, key, size):
    assert max_batch_size(family, key) == size


ENTRIES = st.lists(
    st.tuples(st.sampled_from(KEYS), st.integers(1, 9), st.booleans()), min_size=1, max_size=12
).map(
    lambda entries: [
        queued(request_id, key=key, num_images=num_images, alone=alone)
        for request_id, (key, num_images, alone) in enumerate(entries)
    ]
)


@given(ENTRIES, st.sampled_from(BUCKETS))
def test_every_batch_is_of_one_kind_and_within_limits(entries, limit):
    allocations = choose_batch(entries, FairQueue(), lambda key: limit)
    by_id = {entry.request_id: entry for entry in entries}
    total = sum(each.num_images for each in allocations)
    assert total in BUCKETS
    assert total <= limit
    assert len({by_id[each.request_id].key for each in allocations}) == 1
    assert all(1 <= each.num_images <= by_id[each.request_id].num_images for each in allocations)
    assert not any(by_id[each.request_id].is_isolated for each in allocations) or total == 1


@given(ENTRIES, st.sampled_from(BUCKETS), st.data())
def test_every_image_is_allocated_once(entries, limit, data):
    fair_queue, left = FairQueue(), {entry.request_id: entry for entry in entries}
    for _ in range(sum(entry.num_images for entry in entries)):
        allocations = choose_batch(list(left.values()), fair_queue, lambda key: limit)
        if allocations:
            fair_queue.charge(left[allocations[0].request_id].key, data.draw(st.floats(0.01, 10)))
        for each in allocations:
            entry = left[each.request_id]
            left[each.request_id] = replace(entry, num_images=entry.num_images - each.num_images)
            if not left[each.request_id].num_images:
                del left[each.request_id]
    assert not left


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.integers(10, 60))
def test_groups_that_always_wait_have_equal_parts_of_the_device(costs, num_batches):
    """No two of them differ by more than one batch of each."""
    fair_queue, had = FairQueue(), dict.fromkeys(KEYS, 0.0)
    for _ in range(num_batches):
        group = fair_queue.first(KEYS)
        cost_s = costs[KEYS.index(group)]
        fair_queue.charge(group, cost_s)
        had[group] += cost_s
        assert max(had.values()) - min(had.values()) <= 2 * max(costs) + 1e-6


def test_who_comes_late_neither_claims_the_past_nor_pays_for_it():
    fair_queue = FairQueue()
    for _ in range(10):
        assert fair_queue.first(KEYS[:1]) == KEYS[0]
        fair_queue.charge(KEYS[0], 1.0)
    order = []
    for _ in range(6):
        order.append(fair_queue.first(KEYS[:2]))
        fair_queue.charge(order[-1], 1.0)
    assert order.count(KEYS[1]) == 3
    assert order[0] == KEYS[1], "the one that had nothing is first"
    assert order[1] == KEYS[0], "and the other one waits for one batch only"
