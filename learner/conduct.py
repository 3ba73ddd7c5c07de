"""How each key behaves: points for what no honest worker does, a budget of frames, and the verdict.

Points fade by half in ten minutes, and good episodes pay for mistakes. A key that reaches `LIMIT` is
expelled. Its budget lets any honest fleet through; beyond it frames are dropped unread, which harms an honest
worker little: what it holds is said again each second, and an episode is pushed until it is received.

Pure but for a lock, because two threads judge: no socket and no clock inside.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LIMIT = 100.0
"""Points at which a key is expelled."""
HALF_LIFE_SECONDS = 600.0

Offence = Literal[
    "no valid message",
    "invalid episode",
    "episode of another key's ticket",
    "another key's session",
    "command of a worker's key",
    "new session",
    "refused session",
    "failed ticket",
    "tickets held for too long",
    "no answer to a step",
    "frame beyond the budget",
]
POINTS: Mapping[Offence, float] = {
    "no valid message": 1.0,
    "invalid episode": 1.0,
    "episode of another key's ticket": 0.2,  # after a restart an honest worker may come too late
    "another key's session": 5.0,
    "command of a worker's key": 1.0,
    "new session": 0.02,  # a thousand honest workers may share a key
    "refused session": 2.0,
    "failed ticket": 0.1,  # environments fail, too
    "tickets held for too long": 1.0,  # for each hundredth of all that may be outstanding
    "no answer to a step": 25.0,
    "frame beyond the budget": 0.01,
}
PAID_BY_AN_EPISODE = 0.05

Line = Literal["control", "episodes", "step"]
"""A socket on which frames arrive."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Frames that a key may send over one socket: so many at once, and then so many a second."""

    burst: float
    per_second: float
    per_session: float = 0.0
    most_per_second: float = 1e9
    useful: float = 0.0
    """Given back for each frame that was of use."""


BUDGETS: Mapping[Line, Budget] = {
    "control": Budget(5_000, 200, per_session=50, most_per_second=5_000),
    "episodes": Budget(20_000, 200, useful=2.0),
    "step": Budget(20_000, 200, useful=2.0),
}


@dataclass(slots=True)
class _Purse:
    tokens: float
    at: float


@dataclass(slots=True)
class Record:
    """What one key has done."""

    points: float = 0.0
    at: float = 0.0
    offences: Counter[str] = field(default_factory=Counter)
    sessions: int = 0
    """That take part now."""
    expelled: str = ""
    """Why; empty while it is not."""
    purses: dict[str, _Purse] = field(default_factory=dict)

    def fade(self, now: float) -> None:
        """Let points fade up to now."""
        self.points *= 0.5 ** (max(0.0, now - self.at) / HALF_LIFE_SECONDS)
        self.at = now


class Conduct:
    """The records of all keys, by public key."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._verdicts: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def offend(self, key: str, offence: Offence, now: float, times: float = 1.0) -> None:
        """Note what a key did; the verdict, where this brings it to the limit, comes from `take_verdicts`."""
        with self._lock:
            self._offend(key, offence, now, times)

    def spend(self, key: str, line: Line, now: float) -> bool:
        """Say whether a frame is within a key's budget, and take it from there."""
        budget = BUDGETS[line]
        with self._lock:
            record = self._record(key, now)
            purse = record.purses.setdefault(line, _Purse(budget.burst, now))
            rate = min(budget.per_second + budget.per_session * record.sessions, budget.most_per_second)
            purse.tokens = min(budget.burst, purse.tokens + rate * max(0.0, now - purse.at))
            purse.at = now
            if purse.tokens >= 1.0:
                purse.tokens -= 1.0
                return True
            self._offend(key, "frame beyond the budget", now, 1.0)
            return False

    def charge(self, key: str, line: Line, frames: float) -> None:
        """Take more from a key's budget, for a frame that costs more than others."""
        with self._lock:
            if (record := self._records.get(key)) and (purse := record.purses.get(line)):
                purse.tokens -= frames

    def useful(self, key: str, line: Line, now: float) -> None:
        """Note that a frame was of use: a first copy of a good episode, an answer that was waited for."""
        budget = BUDGETS[line]
        with self._lock:
            record = self._record(key, now)
            record.points = (
                max(0.0, record.points - PAID_BY_AN_EPISODE) if line == "episodes" else record.points
            )
            if purse := record.purses.get(line):
                purse.tokens = min(budget.burst, purse.tokens + budget.useful)

    def count_sessions(self, sessions: Mapping[str, int]) -> None:
        """Note how many sessions of each key take part."""
        with self._lock:
            for key, record in self._records.items():
                record.sessions = sessions.get(key, 0)

    def take_verdicts(self) -> list[tuple[str, str]]:
        """Return the keys to be expelled since the last call, each with its reason."""
        with self._lock:
            verdicts, self._verdicts = self._verdicts, []
            return verdicts

    def forget(self, key: str) -> None:
        """Begin anew with a key that was revoked."""
        with self._lock:
            self._records.pop(key, None)

    def to_plain(self, now: float) -> dict[str, dict[str, Any]]:
        """Return what is known of each key, for the status."""
        with self._lock:
            plain = {}
            for key, record in self._records.items():
                record.fade(now)
                plain[key] = {
                    "points": round(record.points, 1),
                    "offences": dict(record.offences),
                    "throttled": any(purse.tokens < 1.0 for purse in record.purses.values()),
                    "expelled": record.expelled,
                }
            return plain

    def _record(self, key: str, now: float) -> Record:
        if (record := self._records.get(key)) is None:
            record = self._records[key] = Record(at=now)
        return record

    def _offend(self, key: str, offence: Offence, now: float, times: float) -> None:
        record = self._record(key, now)
        record.fade(now)
        record.points += POINTS[offence] * times
        record.offences[offence] += 1
        if record.points >= LIMIT and not record.expelled:
            record.expelled = f"{record.points:.0f} points: " + ", ".join(
                f"{count:,} x {name}" for name, count in record.offences.most_common()
            )
            self._verdicts.append((key, record.expelled))
