"""The cache of text embeddings, with made-up ones and those of a tiny model."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.factories import make_request
from support.loading import load, shipped

from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.conditions import TextCondition
from pixpod.engine.execution.conditions.text import text_key
from pixpod.engine.execution.pipelines import calls_of
from pixpod.families import Precision

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sdxl():
    return load("sdxl-tiny", shipped("sdxl-tiny"), Precision.FLOAT32, CPU)


@pytest.fixture(scope="module")
def flux():
    return load("flux-tiny", shipped("flux-tiny"), Precision.BFLOAT16, CPU)


def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in found
    )


def test_hit_is_byte_for_byte_what_encoding_gives(sdxl):
    condition = TextCondition(ConditionCache(10**6))
    request, pipe = make_request(negative_prompt="a green square"), sdxl.full_pipeline()
    with torch.inference_mode():
        assert condition.find(sdxl, request) is None
        computed = condition.compute(sdxl, pipe, request)
        expected = calls_of(sdxl.spec.family).encode_text(pipe, request, CPU)
        found = condition.find(sdxl, request)
        assert found is not None
        assert same(computed, expected)
        assert same(found, expected)
        for value in (*computed.values(), *found.values()):
            value.zero_()  # whoever got it may do with it what they like
        assert same(condition.find(sdxl, request), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "another"},
        {"prompt_2": "another"},
        {"negative_prompt": "another"},
        {"max_sequence_length": 256},
        {"guidance_scale": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_the_embedding_changes_the_key(sdxl, change):
    assert text_key(sdxl, make_request(**change)) != text_key(sdxl, make_request())


@pytest.mark.parametrize(
    "change",
    [{"seeds": (5, 6)}, {"width": 128}, {"num_inference_steps": 9}, {"guidance_scale": 7.0}],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_change_it_does_not(sdxl, change):
    assert text_key(sdxl, make_request(**change)) == text_key(sdxl, make_request())


def test_guidance_of_flux_changes_the_embeddings_by_its_true_scale_only(flux):
    """The other scale is an input of its transformer."""

    def key(**changes):
        return text_key(flux, make_request("flux-tiny", negative_prompt="a square", **changes))

    assert key(true_cfg_scale=2.0) != key()
    assert key(true_cfg_scale=1.0) == key()
    assert key(guidance_scale=1.0) == key()


def test_other_weights_have_other_keys(sdxl):
    request = make_request()
    other = replace(sdxl, identity=replace(sdxl.identity, revision="2"))
    assert text_key(other, request) != text_key(sdxl, request)


def test_texts_that_run_together_have_keys_of_their_own(sdxl):
    keys = {
        text_key(sdxl, make_request(prompt=first, prompt_2=second))
        for first, second in (("ab", "c"), ("a", "bc"), ("abc", None), ("abc", ""))
    }
    assert len(keys) == 4


def test_key_holds_no_text(sdxl):
    assert "circle" not in repr(text_key(sdxl, make_request()))


def test_what_is_no_tensor_is_kept_as_it_is(sdxl):
    cache, key = ConditionCache(100), text_key(sdxl, make_request())
    cache.put(key, {"embeds": torch.ones(2), "negative": None})
    found = cache.get(key, CPU)
    assert found is not None
    assert found["negative"] is None


@settings(max_examples=60, deadline=None)
@given(
    max_bytes=st.integers(0, 12),
    numbers=st.lists(st.integers(0, 5), max_size=30),
)
def test_bytes_stay_below_the_limit_and_the_oldest_goes_first(sdxl, max_bytes, numbers):
    """An entry's number is its size, and its value; the model of it is a plain list."""
    cache = ConditionCache(max_bytes)
    expected: list[int] = []
    for number in numbers:
        key = text_key(sdxl, make_request(prompt=str(number)))
        found = cache.get(key, CPU)
        assert (found is not None) == (number in expected)
        if found is not None:
            assert found["embeds"].tolist() == [number] * number
            expected.remove(number)
        else:
            cache.put(key, {"embeds": torch.full((number,), number, dtype=torch.uint8)})
            if number > max_bytes:
                assert cache.get(key, CPU) is None
                continue
        expected.append(number)
        while sum(expected) > max_bytes:
            expected.pop(0)
        assert cache.size_bytes == sum(expected) <= max_bytes
