"""Keys of images: nobody guesses them, they never collide, and they follow the content."""

import hashlib
import hmac
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from pixpod.job import ImageFormat
from pixpod.outputs.keys import JobKeys, idempotent_name
from pixpod.outputs.storage import clean_prefix

SHA256 = "0123456789abcdef" * 4


def keys(*, prefix="", key_prefix="", job_name="job-1", secret="secret"):
    return JobKeys(
        prefix=prefix, key_prefix=key_prefix, job_name=job_name, secret=SecretStr(secret)
    )


def key(*, index=0, sha256=SHA256, format=ImageFormat.PNG, name="", **job):
    return keys(**job).image_key(name=name, index=index, sha256=sha256, format=format)


def test_key_is_known_for_ever():
    """A golden value: a new release must find what the last one wrote."""
    assert key(prefix="live", key_prefix="cats", job_name="1a2b-e1", index=3) == (
        "live/cats/1a2b-e1/3-50eb6b3d3a35c7f55d1d33b4a75abe7b.png"
    )


def test_equal_bytes_of_a_retried_job_have_one_key():
    assert key(job_name="a", index=2) == key(job_name="a", index=2)


def test_other_bytes_have_another_key():
    assert key(sha256=SHA256) != key(sha256="f" * 64)


def test_name_is_before_the_index():
    assert Path(key(name="my-poster.v2", index=7)).name.startswith("my-poster.v2-7-")


def test_token_has_128_bits():
    token = Path(key()).stem.partition("-")[2]
    assert len(token) == 32
    assert int(token, 16) > 0


def test_token_needs_the_secret():
    assert key(secret="one") != key(secret="two")


@given(st.tuples(st.text(), st.integers(0, 99)), st.tuples(st.text(), st.integers(0, 99)))
def test_two_images_never_share_a_key(one, other):
    keys = {key(job_name=job_name, index=index) for job_name, index in (one, other)}
    assert len(keys) == len({one, other})


@pytest.mark.parametrize(("one", "other"), [("a/b", "a_b"), ("x" * 90, "x" * 91), ("", "_")])
def test_ids_that_look_alike_have_keys_of_their_own(one, other):
    first, second = key(job_name=one), key(job_name=other)
    assert first.split("/")[0] == second.split("/")[0]
    assert first != second


def test_index_and_id_cannot_be_mixed_up():
    first, second = key(job_name="2 x", index=1), key(job_name="x", index=12)
    assert Path(first).stem.split("-")[-1] != Path(second).stem.split("-")[-1]


@given(st.text())
def test_any_job_name_makes_a_safe_key(job_name):
    parts = key(prefix="live", job_name=job_name).split("/")
    assert len(parts) == 3
    assert clean_prefix("/".join(parts)) == "/".join(parts)
    assert not parts[1].startswith(".")


@pytest.mark.parametrize("key_prefix", ["cats", "cats/2026-11", "a.b_c/d"])
def test_callers_prefix_stays_below_the_deployments(key_prefix):
    assert key(prefix="live", key_prefix=key_prefix).startswith(f"live/{key_prefix}/job-1/0-")


@pytest.mark.parametrize("format", ImageFormat)
def test_key_ends_with_the_format(format):
    assert key(format=format).endswith(f".{format}")


def name_of(key="order-7", *, key_prefix="shop", secret="secret"):
    return idempotent_name(key, key_prefix=key_prefix, secret=SecretStr(secret))


def test_idempotent_name_is_known_for_ever():
    digest = hmac.new(b"secret", b"shop\norder-7", hashlib.sha256).hexdigest()
    assert name_of() == f"key-{digest[:32]}"


def test_idempotent_name_depends_on_key_prefix_and_secret():
    names = {name_of(), name_of("order-8"), name_of(key_prefix=""), name_of(secret="other")}
    assert len(names) == 4
