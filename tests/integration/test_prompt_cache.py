"""Kept text embeddings, made-up ones and those of a tiny model."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pixpod.engine.execution.family_calls import RULES
from support.factories import make_request
from support.loading import load, shipped

from pixpod.engine.execution.prompt_cache import PromptCache
from pixpod.families import Precision

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sdxl():
    return load("sdxl-tiny", shipped("sdxl-tiny"), Precision.FLOAT32, CPU)


def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in found
    )


def test_hit_is_byte_for_byte_what_encoding_gives(sdxl):
    cache = PromptCache(10**6)
    request = make_request(negative_prompt="a green square")
    calls: list[int] = []

    def encode():
        calls.append(1)
        with torch.inference_mode():
            return RULES[sdxl.spec.family].encode_text(sdxl.pipe, request)

    with torch.inference_mode():
        fresh = cache.get_or_encode(cache.key(sdxl, request), encode, CPU)
        kept = cache.get_or_encode(cache.key(sdxl, request), encode, CPU)
        assert len(calls) == 1
        assert same(kept, encode())
        assert (cache.hits, cache.misses) == (1, 1)
        for value in (*fresh.values(), *kept.values()):
            value.zero_()  # whoever got it may do with it what they like
        assert same(cache.get_or_encode(cache.key(sdxl, request), encode, CPU), encode())


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "another"},
        {"prompt_2": "another"},
        {"negative_prompt": "another"},
        {"max_sequence_length": 256},
        {"guidance_scale": 1.0},
        {"true_cfg_scale": 2.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_the_embedding_changes_the_key(sdxl, change):
    cache, request = PromptCache(0), make_request()
    assert cache.key(sdxl, replace(request, **change)) != cache.key(sdxl, request)


@pytest.mark.parametrize(
    "change",
    [{"seeds": (5, 6)}, {"width": 128}, {"num_inference_steps": 9}, {"guidance_scale": 7.0}],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_change_it_does_not(sdxl, change):
    cache, request = PromptCache(0), make_request()
    assert cache.key(sdxl, replace(request, **change)) == cache.key(sdxl, request)


def test_other_weights_have_other_keys(sdxl):
    cache, request = PromptCache(0), make_request()
    other = replace(sdxl, identity=replace(sdxl.identity, revision="2"))
    assert cache.key(other, request) != cache.key(sdxl, request)


def test_texts_that_run_together_are_told_apart(sdxl):
    cache = PromptCache(0)
    keys = {
        cache.key(sdxl, make_request(prompt=first, prompt_2=second))
        for first, second in (("ab", "c"), ("a", "bc"), ("abc", None), ("abc", ""))
    }
    assert len(keys) == 4


def test_key_holds_no_text(sdxl):
    assert "circle" not in repr(PromptCache(0).key(sdxl, make_request()))


def test_what_is_no_tensor_is_kept_as_it_is(sdxl):
    cache, key = PromptCache(100), PromptCache(0).key(sdxl, make_request())
    entry = {"embeds": torch.ones(2), "negative": None}
    cache.get_or_encode(key, lambda: entry, CPU)
    assert cache.get_or_encode(key, dict, CPU)["negative"] is None


@settings(max_examples=60, deadline=None)
@given(
    max_bytes=st.integers(0, 12),
    asked=st.lists(st.integers(0, 5), max_size=30),
)
def test_bytes_stay_below_the_limit_and_the_oldest_goes_first(sdxl, max_bytes, asked):
    """An entry's number is its size, and its value; the model of it is a plain list."""
    cache = PromptCache(max_bytes)
    expected: list[int] = []
    for number in asked:
        key = cache.key(sdxl, make_request(prompt=str(number)))
        calls: list[int] = []

        def encode(number=number, calls=calls):
            calls.append(number)
            return {"embeds": torch.full((number,), number, dtype=torch.uint8)}

        found = cache.get_or_encode(key, encode, CPU)
        assert found["embeds"].tolist() == [number] * number
        assert bool(calls) == (number not in expected)
        if number in expected:
            expected.remove(number)
        if calls and number > max_bytes:
            continue
        expected.append(number)
        while sum(expected) > max_bytes:
            expected.pop(0)
        assert cache.size_bytes == sum(expected) <= max_bytes
