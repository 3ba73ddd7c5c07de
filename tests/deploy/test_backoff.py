"""Pauses grow up to the longest, whatever died however often."""

from __future__ import annotations

from deploy.backoff import FIRST_SECONDS, LONGEST_SECONDS, pause_seconds


def test_pauses_double_until_the_longest() -> None:
    assert [pause_seconds(doublings) for doublings in range(3)] == [
        FIRST_SECONDS,
        2 * FIRST_SECONDS,
        4 * FIRST_SECONDS,
    ]
    assert pause_seconds(6) == pause_seconds(100_000) == LONGEST_SECONDS
