"""What the clock says of counters that only grow: how fast a worker's do, and when tickets were issued."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

_HALF_WINDOW_SECONDS = 4.0
_LATE_SECONDS = 3.0
"""From this age on the last counts are taken for those of now: nothing has grown since."""

_MOST_MARKS = 10_000

Mark = tuple[float, tuple[float, ...]]


@dataclass(slots=True)
class Pace:
    """Growth a second over the last 4 to 8 s, at the cost of three marks whatever comes in."""

    _older: Mark | None = None
    _newer: Mark | None = None
    _last: Mark | None = None

    def note(self, now: float, *counts: float) -> None:
        """Take in what the counters show; always the same ones."""
        self._last = (now, counts)
        if self._newer is None or self._older is None:
            self._older = self._newer = self._last
        elif now - self._newer[0] >= _HALF_WINDOW_SECONDS:
            self._older, self._newer = self._newer, self._last

    def rates(self, now: float) -> tuple[float, ...] | None:
        """Return the growth of each counter a second; None as long as there is nothing to compare."""
        if self._older is None or self._last is None:
            return None
        (since, before), (until, counts) = self._older, self._last
        seconds = (now if now - until > _LATE_SECONDS else until) - since
        if seconds <= 0:
            return None
        return tuple(max(0.0, (b - a) / seconds) for a, b in zip(before, counts, strict=True))


class IssueTimes:
    """When tickets were issued, by number, for those that are outstanding."""

    def __init__(self, issued: int) -> None:
        self._counts, self._times = [issued], [-math.inf]
        """Tickets below `_counts[k]` were issued by `_times[k]`."""

    def note(self, issued: int, now: float) -> None:
        """Note how many have been issued by now."""
        if issued > self._counts[-1]:
            self._counts.append(issued)
            self._times.append(now)
        if len(self._counts) > _MOST_MARKS:  # every other one: the newer of both times is a little late
            del self._counts[1:-1:2], self._times[1:-1:2]

    def of(self, number: int) -> float | None:
        """Return when a ticket was issued; None for one that was before this count began."""
        place = bisect_right(self._counts, number)
        return self._times[place] if 0 < place < len(self._times) else None


class IssueSpan:
    """When the first train ticket of a run was issued, and when all were; in this life of the learner."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._last: float | None = None

    def note(self, any_issued: bool, all_issued: bool, now: float) -> None:
        """Note whether tickets have been issued by now."""
        if any_issued and self._first is None:
            self._first = now
        if all_issued and self._last is None:
            self._last = now

    def seconds(self, now: float) -> dict[str, float | None]:
        """Return how long ago that was; None where it has not been."""
        moments = {"since_first": self._first, "since_last": self._last}
        return {name: None if moment is None else now - moment for name, moment in moments.items()}
