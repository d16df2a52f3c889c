"""The texts of a job that no log may show, whatever is wrong with the job."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from pixpod.contract.job_input import JobInput
from pixpod.contract.sensitive import (
    MAX_ALL_CHARACTERS,
    MAX_CHARACTERS,
    MAX_TEXTS,
    sensitive_texts,
)


def texts(**given):
    return sensitive_texts({"id": "job-1", "input": given})


def test_prompts_and_keys_come_first_and_names_are_left_out():
    found = texts(
        flavour="an unknown field",
        model="flux-dev",
        scheduler="EulerDiscreteScheduler",
        webhook_events=["completed"],
        output={"format": "webp", "delivery": "inline", "key_prefix": "customers/42"},
        idempotency_key="order-1234",
        negative_prompt="text, frame",
        prompt="a lighthouse",
        seed=[1, 2],
    )
    expected = ("a lighthouse", "text, frame", "order-1234", "an unknown field", "customers/42")
    assert found == expected


def test_urls_are_listed_whole_and_by_their_parts():
    url = "https://user:pass@host.example/a%20path?token=pome%2Fgranate&x=&y=fig#fragment"
    assert set(texts(webhook_url=url)) == {
        url,
        "user:pass",
        "/a%20path",
        "/a path",
        "token=pome%2Fgranate&x=&y=fig",
        "pome/granate",
        "fig",
        "fragment",
    }


def test_places_of_a_job_are_listed():
    raw = {
        "id": "job-1",
        "input": {
            "output": {
                "put_urls": [
                    {"url": "https://host/1?sig=persimmon", "headers": {"x-amz-acl": "tamarind"}},
                    "https://host/2?sig=mangosteen",
                ]
            }
        },
        "s3Config": {"accessId": "AKIA1234", "accessSecret": "rambutan", "bucketName": 7},
        "webhook": "https://host/hook?key=kumquats",
    }
    words = {"persimmon", "tamarind", "mangosteen", "AKIA1234", "rambutan", "kumquats"}
    assert words < set(sensitive_texts(raw))


def deep(levels):
    value: object = "the innermost"
    for _ in range(levels):
        value = [{"a": value}]
    return value


ODD: dict[str, dict[str, Any]] = {
    "no input": {},
    "text as input": {"input": "a lighthouse"},
    "list as input": {"input": [1, "a lighthouse", None]},
    "half a surrogate": {"input": {"prompt": "a \ud800 lighthouse"}},
    "malformed URL": {"input": {"webhook_url": "http://[::1/?a=b"}},
    "many fields in a query": {"input": {"image": "http://a/?" + "a=b&" * 9_999}},
    "deep": {"input": {"prompt": deep(5_000)}},
    "s3Config is a number": {"input": {}, "s3Config": 5},
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_jobs_raise_nothing(kind):
    found = sensitive_texts(ODD[kind])
    assert all(isinstance(text, str) for text in found)
    assert bool(found) == (kind not in ("no input", "s3Config is a number"))


def test_listing_is_bounded():
    assert texts(prompt="x" * 1_000_000) == ("x" * MAX_CHARACTERS,)
    assert len(texts(words=[f"word number {number}" for number in range(1_000)])) == MAX_TEXTS
    many = texts(words=[f"{number:03}" + "x" * MAX_CHARACTERS for number in range(100)])
    assert sum(map(len, many)) <= MAX_ALL_CHARACTERS


def test_errors_of_the_contract_hide_what_was_given():
    """Pydantic shows the begin and the end of a value."""
    with pytest.raises(ValidationError) as caught:
        JobInput.model_validate({"model": 5, "prompt": "zanzibar\0"})
    assert "zanzibar" not in str(caught.value)
    assert "zanzibar" in json.dumps(caught.value.errors(include_url=False)[1]["input"])
