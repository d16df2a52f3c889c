"""s3Config at rest and on display: what goes in comes out, for the right key alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runpod_emulator.jobs.sealing import SealBroken, Sealer

S3_CONFIG = {
    "accessId": "AKIAEXAMPLE",
    "accessSecret": "wJalrSecret",
    "bucketName": "images",
    "endpointUrl": "https://s3.example.com/images",
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
@settings(max_examples=30)
def test_what_was_sealed_opens_again(value):
    assert Sealer("key", b"salt").open(Sealer("key", b"salt").seal(value)) == value


def test_nothing_of_the_value_can_be_read_in_the_seal():
    sealed = Sealer("key", b"salt").seal(S3_CONFIG)
    assert not any(value in sealed for value in S3_CONFIG.values())


@pytest.mark.parametrize(
    "other", [Sealer("another key", b"salt"), Sealer("key", b"another salt")], ids=["key", "salt"]
)
def test_another_key_or_salt_opens_nothing_and_says_what_to_do(other):
    sealed = Sealer("key", b"salt").seal(S3_CONFIG)
    with pytest.raises(SealBroken, match="start again with the key under which"):
        other.open(sealed)


@pytest.mark.parametrize("change", [lambda s: "", lambda s: s[:-4], lambda s: "ß" + s[1:]])
def test_what_was_altered_does_not_open(change):
    sealer = Sealer("key", b"salt")
    with pytest.raises(SealBroken):
        sealer.open(change(sealer.seal(S3_CONFIG)))


def test_a_printed_sealer_shows_nothing():
    assert repr(Sealer("key", b"salt")) == "Sealer()"
