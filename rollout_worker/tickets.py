"""The tickets that a worker holds: each queued, running, in the outbox or among the failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from protocol.messages import Failure, Grant, Holdings, TicketRanges, Version
from protocol.ranges import IntervalSet, to_ranges
from protocol.tickets import SEQUENCES, Ticket
from rollout_worker.events import Abandon, Forget, Instruction, Push, Start

TWICE_EVERY = 100
"""Of the train tickets that name their version exactly, as in exact mode, every 100th is played twice."""
QUEUED_PER_SLOT = 4
"""More queued tickets than this for each slot are not accepted, whatever was granted."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which version a queued ticket may begin: at least, or exactly, this number."""

    version: int
    exact: bool


class Tickets:
    """What became of each ticket that a worker was granted and has not let go."""

    def __init__(self, slots: int) -> None:
        self.queued: dict[Ticket, Terms] = {}
        self.running: dict[Ticket, Version] = {}
        self.outbox: dict[Ticket, float] = {}
        """Finished episodes, with the time of their last push."""
        self.failures: dict[Ticket, Failure] = {}
        self.changed = False
        """Whether there is something that no heartbeat has told."""
        self.episodes = self.pushes = self.failed_in_a_row = 0
        self._slots = slots

    @property
    def unsettled(self) -> bool:
        """Say whether there is something that the learner has not got."""
        return bool(self.running or self.outbox or self.failures)

    @property
    def idle(self) -> int:
        """Return the number of slots that play nothing."""
        return self._slots - len(self.running)

    def holdings(self, stalled: Iterable[Ticket] = ()) -> Holdings:
        """Return all of them, as a message says it."""
        return Holdings(
            queued=_by_sequence(self.queued),
            running=_by_sequence(self.running),
            outbox=_by_sequence(self.outbox),
            failures=tuple(self.failures.values()),
            stalled=_by_sequence(stalled),
        )

    def grant(self, grants: Iterable[Grant]) -> None:
        """Queue what the learner grants, as far as there is room."""
        room = QUEUED_PER_SLOT * self._slots - len(self.queued)
        for grant in grants:
            for number in range(grant.start, min(grant.stop, grant.start + room)):
                ticket = Ticket(grant.sequence, number)
                if not (ticket in self.running or ticket in self.outbox or ticket in self.failures):
                    self.queued[ticket] = Terms(grant.version, grant.exact)
            room = QUEUED_PER_SLOT * self._slots - len(self.queued)

    def start(self, version_for: Callable[[Terms], Version | None]) -> Iterator[Start]:
        """Fill the idle slots with queued tickets; `version_for` says under which weights, None not yet."""
        idle = self.idle
        if idle <= 0 or not self.queued:
            return
        for ticket in sorted(self.queued, key=lambda ticket: (ticket.sequence, ticket.number)):
            terms = self.queued[ticket]
            version = version_for(terms)
            if version is not None:
                del self.queued[ticket]
                self.running[ticket] = version
                exact = terms.exact and ticket.sequence == "train"
                yield Start(ticket, version, twice=exact and ticket.number % TWICE_EVERY == 0)
                idle -= 1
                if idle == 0:
                    return

    def finish(self, ticket: Ticket, now: float) -> Iterator[Instruction]:
        """Move a ticket that is over to the outbox, unless it was taken away meanwhile."""
        if self.running.pop(ticket, None) is None:
            yield Forget((ticket,))
            return
        self.failed_in_a_row, self.changed = 0, True
        self.episodes += 1
        yield from self.push([ticket], now)

    def fail(self, failure: Failure) -> bool:
        """Move a ticket to the failures, and say whether it was still running here."""
        if self.running.pop(failure.ticket, None) is None:
            return False
        self.failures[failure.ticket], self.changed = failure, True
        self.failed_in_a_row += 1
        return True

    def unacknowledged(self, now: float, limit_seconds: float) -> list[Ticket]:
        """Return the episodes that were pushed so long ago that they may be lost by now."""
        return [ticket for ticket, at in self.outbox.items() if now - at > limit_seconds]

    def push(self, tickets: list[Ticket], now: float) -> Iterator[Instruction]:
        """Send these episodes; they stay in the outbox until they are dropped."""
        if tickets:
            self.outbox.update(dict.fromkeys(tickets, now))
            self.pushes += len(tickets)
            yield Push(tuple(tickets))

    def drop(self, drop: TicketRanges) -> Iterator[Instruction]:
        """Let go of what the learner has received, or given to others."""
        dropped = {sequence: IntervalSet.from_ranges(ranges) for sequence, ranges in drop.items()}

        def take(held: dict[Ticket, Any]) -> tuple[Ticket, ...]:
            taken = tuple(t for t in held if t.sequence in dropped and t.number in dropped[t.sequence])
            for ticket in taken:
                del held[ticket]
            return taken

        take(self.failures)
        self.changed |= bool(take(self.queued))
        if running := take(self.running):
            self.changed = True
            yield Abandon(running)
        if outbox := take(self.outbox):
            yield Forget(outbox)

    def give_back(self) -> tuple[Ticket, ...]:
        """Let go of all that is unfinished; return what was running."""
        running = tuple(self.running)
        self.queued.clear()
        self.running.clear()
        return running


def _by_sequence(tickets: Iterable[Ticket]) -> TicketRanges:
    numbers: dict[str, list[int]] = {}
    for ticket in tickets:
        numbers.setdefault(ticket.sequence, []).append(ticket.number)
    return {sequence: to_ranges(numbers[sequence]) for sequence in SEQUENCES if sequence in numbers}
