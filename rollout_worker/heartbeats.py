"""The heartbeats of a session: when the next one is due, and what it says."""

from __future__ import annotations

import math
from typing import Literal

from protocol.messages import Built, Heartbeat
from protocol.tickets import Ticket
from rollout_worker.events import State, Telemetry
from rollout_worker.tickets import Tickets
from rollout_worker.versions import Versions

CHANGE_SECONDS = 0.02
"""A change waits until the last heartbeat is this old: many episodes share one heartbeat."""
IDLE_SECONDS = 0.005
"""The same while a slot stands idle."""
_STATES: dict[State, Literal["building", "ready", "paused"]] = {
    State.BUILDING: "building",
    State.PLAYING: "ready",
    State.PAUSED: "paused",
}


class Heartbeats:
    """Counts them, and remembers what was running at the last one."""

    def __init__(self, session: str, now: float) -> None:
        self.period_seconds = 1.0
        """Between two heartbeats of a worker where nothing changes."""
        self.changed = False
        """Whether there is something that none has told, beside the tickets."""
        self.built: Built | None = None
        self.error = ""
        """The last error in one line."""
        self._session, self._number, self._at = session, 0, now
        self._passes, self._running = -1, frozenset[Ticket]()

    def hurry(self) -> None:
        """Let the next one be due at once."""
        self.changed, self._at = True, -math.inf

    def due_at(self, tickets: Tickets, *, idle: bool) -> float:
        """Return when the next one is due; `idle` says whether a slot stands so."""
        if not (self.changed or tickets.changed):
            return self._at + self.period_seconds
        return self._at + (IDLE_SECONDS if idle else CHANGE_SECONDS)

    def beat(
        self,
        state: State,
        answer: int,
        tickets: Tickets,
        versions: Versions,
        telemetry: Telemetry,
        now: float,
    ) -> Heartbeat:
        """Return the next one; stalled are the running tickets that no pass touched since the one before."""
        stands = telemetry.passes == self._passes
        self._number += 1
        heartbeat = Heartbeat(
            session=self._session,
            number=self._number,
            incarnation=versions.incarnation,
            answer=answer,
            state=_STATES.get(state, "draining"),
            holdings=tickets.holdings(self._running & tickets.running.keys() if stands else ()),
            version=versions.newest,
            built=self.built,
            episodes=tickets.episodes,
            steps=telemetry.steps,
            pushes=tickets.pushes,
            rejected=telemetry.rejected,
            cpu_seconds=telemetry.cpu_seconds,
            resident_bytes=telemetry.resident_bytes,
            error=self.error,
        )
        self.changed = tickets.changed = False
        self._at = now
        self._passes, self._running = telemetry.passes, frozenset(tickets.running)
        return heartbeat
