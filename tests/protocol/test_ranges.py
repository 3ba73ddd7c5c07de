from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protocol.ranges import IntervalSet, check_ranges, to_ranges

numbers = st.integers(-5, 40)
sets = st.sets(numbers)


def intervals(members: set[int]) -> IntervalSet:
    return IntervalSet.from_ranges(to_ranges(members))


class AgainstPlainSet(RuleBasedStateMachine):
    """Whatever is done to an IntervalSet, it holds what a plain set would."""

    def __init__(self) -> None:
        super().__init__()
        self.intervals, self.plain = IntervalSet(), set[int]()

    @rule(number=numbers)
    def add(self, number: int) -> None:
        self.intervals.add(number)
        self.plain.add(number)

    @rule(number=numbers)
    def discard(self, number: int) -> None:
        self.intervals.discard(number)
        self.plain.discard(number)

    @rule(start=numbers, stop=numbers)
    def add_range(self, start: int, stop: int) -> None:
        self.intervals.add_range(start, stop)
        self.plain.update(range(start, stop))

    @rule(start=numbers, stop=numbers)
    def discard_range(self, start: int, stop: int) -> None:
        self.intervals.discard_range(start, stop)
        self.plain.difference_update(range(start, stop))

    @rule(other=sets, change=st.sampled_from([operator.ior, operator.isub, operator.iand]))
    def combine(self, other: set[int], change: Callable[[object, object], None]) -> None:
        change(self.intervals, intervals(other))
        change(self.plain, other)

    @invariant()
    def same(self) -> None:
        assert list(self.intervals) == sorted(self.plain)
        assert len(self.intervals) == len(self.plain)
        assert bool(self.intervals) == bool(self.plain)
        assert {number for number in range(-7, 43) if number in self.intervals} == self.plain

    @invariant()
    def canonical(self) -> None:
        ranges = self.intervals.to_ranges()
        assert all(start < stop for start, stop in ranges)
        assert all(before[1] < after[0] for before, after in pairwise(ranges))


TestAgainstPlainSet = AgainstPlainSet.TestCase


@given(sets, sets, st.sampled_from([operator.or_, operator.sub, operator.and_]))
def test_operators_give_new_sets(
    left: set[int], right: set[int], combine: Callable[[object, object], object]
) -> None:
    before = intervals(left)
    assert combine(before, intervals(right)) == intervals(combine(left, right))  # type: ignore[arg-type]  # sets
    assert before == intervals(left)


def test_a_set_less_itself_is_empty() -> None:
    members = intervals({1, 2, 5})
    members -= members
    assert not members
    assert members.to_ranges() == ()


def test_a_copy_is_independent() -> None:
    original = intervals({1, 2})
    twin = original.copy()
    twin.add(7)
    assert list(original) == [1, 2]
    assert list(twin) == [1, 2, 7]


@given(st.sets(st.integers(0, 60)))
def test_valid_ranges_pass(members: set[int]) -> None:
    ranges = to_ranges(members)
    assert check_ranges([list(pair) for pair in ranges], limit=len(members)) == ranges


@pytest.mark.parametrize(
    "value",
    [
        None,
        "ab",
        5,
        [1, 2],
        [(1,)],
        [(1, 2, 3)],
        [("a", "b")],
        [(0, True)],
        [(0.0, 1.0)],
        [(-1, 2)],
        [(3, 3)],
        [(4, 3)],
        [(5, 9), (0, 2)],
        [(0, 5), (4, 9)],
        [(0, 2**63)],
        [(0, 60), (70, 111)],
    ],
)
def test_invalid_ranges_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="range"):
        check_ranges(value, limit=100)
