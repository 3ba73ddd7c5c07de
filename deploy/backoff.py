"""Growing pauses before what died is started again."""

from __future__ import annotations

FIRST_SECONDS, LONGEST_SECONDS = 0.5, 30.0
_MOST_DOUBLINGS = 10


def pause_seconds(doublings: int) -> float:
    """Return the pause that has doubled so many times since the first one, as far as the longest."""
    return min(FIRST_SECONDS * 2.0 ** min(doublings, _MOST_DOUBLINGS), LONGEST_SECONDS)
