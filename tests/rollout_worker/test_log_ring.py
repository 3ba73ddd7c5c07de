"""The lines of its log that a worker keeps for whoever asks."""

from __future__ import annotations

import logging

from protocol.codec import encode
from protocol.messages import LogLines
from rollout_worker.log_ring import MOST_CHARACTERS, MOST_LINES, LogRing


def filled(*messages: str) -> LogRing:
    ring = LogRing()
    for message in messages:
        ring.handle(logging.LogRecord("name", logging.INFO, "", 0, message, None, None))
    return ring


def test_it_keeps_the_newest_lines_of_records_with_several() -> None:
    assert filled("first", "second\nthird").last(2, 10_000) == ("second", "third")


def test_it_is_bounded_in_lines_and_in_their_length() -> None:
    ring = filled(*(f"{number} " + "x" * 5000 for number in range(MOST_LINES + 100)))
    lines = ring.last(10**9, 10**9)
    assert len(lines) == MOST_LINES and lines[-1].startswith(f"{MOST_LINES + 99} ")
    assert {len(line) for line in lines} == {MOST_CHARACTERS}
    assert len(ring.last(10**9, 10 * MOST_CHARACTERS)) == 9


def test_whatever_is_logged_can_be_sent() -> None:
    lines = filled("half a pair: \ud83d", "\0\x1b[2J").last(10, 1000)
    encode(LogLines("session", 1, lines))
    assert len(lines) == 2
