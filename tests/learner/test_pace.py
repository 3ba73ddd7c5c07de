"""Rates of counters, and when tickets were issued."""

from __future__ import annotations

import pytest

from learner.pace import IssueSpan, IssueTimes, Pace


def test_a_pace_is_that_of_the_last_seconds() -> None:
    pace = Pace()
    assert pace.rates(0.0) is None
    count = 0
    for tenth in range(600):
        count += 1 if tenth < 300 else 3
        pace.note(tenth / 10, count, 2 * count)
    assert pace.rates(60.0) == pytest.approx((30.0, 60.0))


def test_a_pace_falls_once_nothing_is_heard() -> None:
    pace = Pace()
    for second in range(10):
        pace.note(float(second), 10.0 * second)
    assert pace.rates(11.0) == pytest.approx((10.0,))
    rates = pace.rates(1000.0)
    assert rates is not None and rates[0] < 0.1


def test_a_pace_never_goes_backwards() -> None:
    pace = Pace()
    pace.note(0.0, 100.0)
    pace.note(1.0, 3.0)
    assert pace.rates(1.0) == (0.0,)


def test_issue_times_are_those_of_the_turn_and_unknown_before_the_start() -> None:
    times = IssueTimes(10)
    times.note(10, 1.0)
    times.note(15, 2.0)
    times.note(20, 3.0)
    assert [times.of(number) for number in (9, 10, 14, 15, 19, 20)] == [None, 2.0, 2.0, 3.0, 3.0, None]


def test_many_issue_times_take_bounded_memory_and_the_older_are_the_coarser() -> None:
    times = IssueTimes(0)
    for turn in range(1, 50_001):
        times.note(turn, float(turn))
    for number in (0, 1_000, 25_000, 49_998):
        issued = times.of(number)
        assert issued is not None and number < issued <= number + 0.02 * (50_000 - number) + 2


def test_the_span_of_issuing_is_told_from_its_ends() -> None:
    span = IssueSpan()
    span.note(False, False, 1.0)
    assert span.seconds(2.0) == {"since_first": None, "since_last": None}
    span.note(True, False, 3.0)
    span.note(True, True, 5.0)
    span.note(True, True, 7.0)
    assert span.seconds(9.0) == {"since_first": 6.0, "since_last": 4.0}
