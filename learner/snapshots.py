"""When a worker that asks for weights gets them."""

from __future__ import annotations

from collections.abc import Callable

from learner.instructions import SendSnapshot

SNAPSHOT_SPACING_SECONDS, SNAPSHOT_BURST_SECONDS = 0.002, 0.2
"""Snapshots are sent this far apart on average, so that answers never wait behind many; a turn that takes
long, as while a thousand workers join, makes up for it."""


class SnapshotQueue:
    """Who waits for the weights of which version, None being the newest then; first come, first served."""

    def __init__(self, now: float) -> None:
        self.waiting: dict[tuple[str, int | None], None] = {}
        self._next_at = now

    def ask(self, session: str, version: int | None) -> None:
        """Let a session wait; to ask again is of no effect."""
        self.waiting[session, version] = None

    def take(self, now: float, which: Callable[[str, int | None], int | None]) -> list[SendSnapshot]:
        """Return what is to be sent now; `which` says what version a session gets, None where none."""
        sent = []
        self._next_at = max(self._next_at, now - SNAPSHOT_BURST_SECONDS)
        while self.waiting and self._next_at <= now:
            name, asked = next(iter(self.waiting))
            del self.waiting[name, asked]
            if (version := which(name, asked)) is not None:
                self._next_at += SNAPSHOT_SPACING_SECONDS
                sent.append(SendSnapshot(name, version))
        return sent
