"""Fallbacks are tried one by one when a batch does not fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixpod.engine.execution.oom_fallbacks import (
    DoesNotFit,
    Fallback,
    run_within_memory,
)


class Memory:
    """Holds `free` rows at a time; fallbacks make room for more."""

    def __init__(self, free, rooms=(), last=()):
        self.free = free
        self.attempts = []
        self.done = []
        self.first, self.last = [*map(self._fallback, rooms)], [*map(self._fallback, last)]

    def _fallback(self, room):
        def apply():
            self.free += room
            return room > 0

        return Fallback(apply=apply, warning=f"made room for {room}")

    def attempt(self, rows):
        self.attempts.append(len(rows))
        if len(rows) > self.free:
            return False
        self.done += [row * 10 for row in rows]
        return True

    def run(self, num_rows):
        warnings = run_within_memory(
            [range(num_rows)], self.attempt, first=self.first, last=self.last
        )
        return self.done, warnings


def test_rows_that_fit_are_processed_at_once():
    memory = Memory(free=4, rooms=[1])
    assert memory.run(4) == ([0, 10, 20, 30], ())
    assert memory.attempts == [4]


def test_fallbacks_are_applied_one_by_one_and_only_those_that_are_needed():
    memory = Memory(free=1, rooms=[0, 3, 4])
    assert memory.run(4) == ([0, 10, 20, 30], ("made room for 3",))
    assert memory.attempts == [4, 4, 4]


def test_batch_is_halved_until_it_fits_and_the_order_is_kept():
    memory = Memory(free=2)
    images, warnings = memory.run(8)
    assert images == [row * 10 for row in range(8)]
    assert memory.attempts == [8, 4, 2, 2, 4, 2, 2]
    assert len(warnings) == 1


def test_others_are_offloaded_for_a_single_row_only():
    memory = Memory(free=0, last=[1])
    images, warnings = memory.run(2)
    assert images == [0, 10]
    assert memory.attempts == [2, 1, 1, 1]
    assert warnings[-1] == "made room for 1"


def test_rows_that_never_fit_are_an_error():
    memory = Memory(free=0, rooms=[0], last=[0])
    with pytest.raises(DoesNotFit):
        memory.run(4)
    assert memory.attempts[-1] == 1


@given(
    st.integers(1, 8),
    st.integers(0, 8),
    st.lists(st.integers(0, 3), max_size=3),
    st.lists(st.integers(0, 3), max_size=2),
)
def test_all_rows_are_processed_in_order_or_none(num_rows, free, rooms, last):
    memory = Memory(free, rooms, last)
    if free + sum(rooms) + sum(last) < 1:
        with pytest.raises(DoesNotFit):
            memory.run(num_rows)
    else:
        assert memory.run(num_rows)[0] == [row * 10 for row in range(num_rows)]
