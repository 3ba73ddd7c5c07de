"""How long tickets are held until their episode is here, and who holds some for too long."""

from __future__ import annotations

from learner.sessions import Session

OVERDUE_STUCK_TIMES, OVERDUE_MEANS = 3, 20
"""Where there are keys, a ticket is held for too long after this many times `--stuck-after`, and so many
times what a ticket is held on average."""
OVERDUE_UNKNOWN_SECONDS = 600.0
"""The same while no episode has come yet."""


class HoldTimes:
    """The mean of late, in seconds; `stuck_after_seconds` is the run's."""

    def __init__(self, stuck_after_seconds: float) -> None:
        self._stuck_after_seconds = stuck_after_seconds
        self.mean_seconds: float | None = None

    def note(self, held_seconds: float) -> None:
        """Take in for how long a ticket was held whose episode has come."""
        mean = self.mean_seconds
        self.mean_seconds = held_seconds if mean is None else mean + (held_seconds - mean) / 100

    def overdue(self, session: Session, now: float) -> int:
        """Return how many tickets a worker with a key has held for longer than any honest one does."""
        if not session.key:
            return 0
        mean = self.mean_seconds
        usual = OVERDUE_UNKNOWN_SECONDS if mean is None else OVERDUE_MEANS * mean
        before = now - max(OVERDUE_STUCK_TIMES * self._stuck_after_seconds, usual)
        return sum(since < before for hand in session.hands.values() for since in hand.since.values())
