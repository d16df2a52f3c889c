"""The table of cards is whole, and any card finds its row."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixpod.engine.precision.gpus import find_card, get_known_card, load_cards, load_known_cards
from pixpod.errors import DeviceUnavailable, InvalidSettings
from pixpod.families import Precision

CARDS = {card.name: card for card in load_cards()}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_row_has_a_source_and_chooses_what_the_card_can(card):
    assert len(card.source) > 40
    assert card.attention in ("native", "_native_cudnn")
    assert not card.eager.is_8_bit or card.float8_since
    for precision in (card.compiled, card.eager):
        assert precision is not Precision.FLOAT8_DYNAMIC or card.float8_since
    assert (card.float8_since is not None) == (card.capability >= (8, 9))


def test_rows_are_of_different_capabilities_the_oldest_first():
    capabilities = [card.capability for card in load_cards()]
    assert capabilities == sorted(set(capabilities))


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.11.0", False), ("2.12.0+cu130", True), ("2.13.1.dev20260101", True), ("3.0.0", True)],
)
def test_ada_needs_a_torch_that_minds_the_stream(version, expected):
    assert find_card((8, 9)).has_float8(version) is expected


def test_card_without_float8_has_it_with_no_torch():
    assert not find_card((8, 6)).has_float8("9.0.0")


@pytest.mark.parametrize(
    ("capability", "treated_as"),
    [((8, 7), (8, 6)), ((10, 3), (10, 0)), ((12, 1), (12, 0)), ((13, 0), (12, 0))],
)
def test_unknown_card_is_treated_as_the_next_older_and_says_so(capability, treated_as):
    card, older = find_card(capability), find_card(treated_as)
    assert (card.name, card.compiled) == (older.name, older.compiled)
    assert card.capability == capability
    assert f"{capability[0]}.{capability[1]} is not in the table" in card.cautions[-1]
    assert not any("not in the table" in caution for caution in older.cautions)


@given(st.tuples(st.integers(0, 20), st.integers(0, 9)))
def test_every_card_has_a_row_that_is_not_newer_or_is_refused(capability):
    if capability < (7, 5):
        with pytest.raises(DeviceUnavailable, match=r"accepted are 7\.5 and higher"):
            find_card(capability)
        return
    names = {card.name for card in load_cards() if card.capability <= capability}
    assert find_card(capability).name in names


@pytest.mark.parametrize("known", load_known_cards(), ids=lambda known: known.name)
def test_known_card_has_a_row_of_its_own_and_is_found_by_its_name(known):
    assert find_card(known.capability).cautions == find_card(known.capability).cautions[:1]
    assert known.capability in {card.capability for card in load_cards()}
    assert 10 < known.memory_gib < 300
    assert get_known_card(known.name) == known


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("nvidia l40s", "L40S"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA RTX 6000 Ada Generation", "6000 Ada"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10", "A10"),
    ],
)
def test_card_is_known_by_what_drivers_and_people_call_it(text, expected):
    assert get_known_card(text).name == expected


@pytest.mark.parametrize("text", ["", "Voodoo 2"])
def test_unknown_name_lists_those_that_are_known(text):
    with pytest.raises(InvalidSettings, match=r"accepted are T4, .*RTX 4090"):
        get_known_card(text)
