"""The versions whose weights a worker holds: which it plays under, lets go, and asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator

from protocol.messages import SnapshotRequest, Version
from rollout_worker.events import Instruction, Release, Send
from rollout_worker.tickets import Terms, Tickets

SNAPSHOT_GRACE_SECONDS, SNAPSHOT_RETRY_SECONDS = 0.1, 1.0
"""Published weights are usually on their way: ask after the grace, and again after the retry."""
RECENT_VERSIONS = 3
"""Newest versions kept beside those that tickets need."""


class Versions:
    """Versions of all incarnations that are `held`, and what is known of those of the present one."""

    def __init__(self, session: str, now: float) -> None:
        self.incarnation = 0
        self.held: set[Version] = set()
        self._session, self._published, self._awaited, self._awaited_since = session, 0, 0, now
        self._asked: dict[int | None, float] = {}
        """When a version was asked for; None is the newest."""

    @property
    def newest(self) -> Version | None:
        """Return the newest of this incarnation that is held."""
        return max((v for v in self.held if v.incarnation == self.incarnation), default=None)

    def follow(self, incarnation: int) -> None:
        """Turn to a later incarnation."""
        self.incarnation, self._published, self._awaited = incarnation, 0, 0
        self._asked.clear()

    def published(self, number: int, now: float) -> None:
        """Note that the learner has published this version."""
        self._published = max(self._published, number)
        if self._awaited <= self._newest_number():
            self._awaited, self._awaited_since = self._published, now

    def add(self, version: Version) -> None:
        """Note that these weights are here."""
        self.held.add(version)
        self._asked.pop(None, None)
        self._asked.pop(version.number, None)

    def version_for(self, terms: Terms) -> Version | None:
        """Return the version that a queued ticket begins under, None while it is not held."""
        wanted = Version(self.incarnation, terms.version)
        if terms.exact:
            return wanted if wanted in self.held else None
        newest = self.newest
        return newest if newest is not None and newest >= wanted else None

    def release(self, tickets: Tickets) -> Iterator[Instruction]:
        """Let go of what no ticket needs, but for the most recent ones."""
        needed = {Version(self.incarnation, t.version) for t in tickets.queued.values() if t.exact}
        needed |= {*tickets.running.values(), *sorted(self.held)[-RECENT_VERSIONS:]}
        if (newest := self.newest) is not None:
            needed.add(newest)
        if released := tuple(sorted(self.held - needed)):
            self.held.intersection_update(needed)
            yield Release(released)

    def ask_at(self, tickets: Tickets) -> float:
        """Return when to ask for something next; infinite where nothing is missing."""
        return min((self._ask_at(version) for version in self._missing(tickets)), default=math.inf)

    def ask(self, tickets: Tickets, now: float) -> Iterator[Instruction]:
        """Ask for what is missing, as far as it is time."""
        for version in self._missing(tickets):
            if now >= self._ask_at(version):
                self._asked[version] = now
                yield Send(SnapshotRequest(self._session, version))

    def _missing(self, tickets: Tickets) -> set[int | None]:
        """Return the versions to ask for; None is the newest."""
        newest = self._newest_number()
        exact = {t.version for t in tickets.queued.values() if t.exact and self.version_for(t) is None}
        missing: set[int | None] = set(exact)
        if newest < self._awaited or newest < 0:
            missing.add(None)
        return missing

    def _ask_at(self, version: int | None) -> float:
        newest = self._newest_number()
        coming = newest >= 0 and (version is None or version > newest)
        earliest = self._awaited_since + SNAPSHOT_GRACE_SECONDS if coming else -math.inf
        return max(earliest, self._asked.get(version, -math.inf) + SNAPSHOT_RETRY_SECONDS)

    def _newest_number(self) -> int:
        return -1 if (newest := self.newest) is None else newest.number
