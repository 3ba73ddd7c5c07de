"""What one worker holds of one sequence: what it may keep, and what it last said that it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import starmap

from protocol.messages import Failure, Holdings, Ranges, TicketRanges
from protocol.tickets import SequenceName


@dataclass(frozen=True, slots=True)
class Listing:
    """What a worker says that it has of one sequence."""

    queued: set[int]
    running: set[int]
    outbox: set[int]
    stalled: set[int]
    failures: Mapping[int, Failure]

    @classmethod
    def of(cls, holdings: Holdings, sequence: SequenceName) -> Listing:
        """Read one sequence's part of a message."""

        def numbers(ranges: TicketRanges) -> set[int]:
            return set().union(*starmap(range, ranges.get(sequence, ())))

        failures = {f.ticket.number: f for f in holdings.failures if f.ticket.sequence == sequence}
        return cls(
            queued=numbers(holdings.queued),
            running=numbers(holdings.running),
            outbox=numbers(holdings.outbox),
            stalled=numbers(holdings.stalled),
            failures=failures,
        )

    def all(self) -> set[int]:
        """Return the numbers of all places."""
        return self.queued | self.running | self.outbox | self.failures.keys()


def claims(holdings: Holdings) -> int:
    """Return how many tickets a message lists, without walking through them."""
    places = (holdings.queued, holdings.running, holdings.outbox, holdings.stalled)
    ranges = (pair for place in places for pairs in place.values() for pair in pairs)
    return len(holdings.failures) + sum(stop - start for start, stop in ranges)


MOST_REMEMBERED = 100
"""Ranges of a heartbeat that are kept until the next one."""


def sequences(holdings: Holdings) -> set[SequenceName]:
    """Return the sequences of which a message lists anything."""
    failures = {failure.ticket.sequence for failure in holdings.failures}
    return failures.union(holdings.queued, holdings.running, holdings.outbox, holdings.stalled)


@dataclass(slots=True, eq=False)
class Hand:
    """One worker's tickets of one sequence, by number.

    `held` are those that the worker may keep; `listed` those that it is known to have. So `listed - held` is
    what an answer drops, and `held - listed` are grants still on their way.
    """

    session: str
    key: str = ""
    """Public key of the worker; empty where there are none."""
    held: set[int] = field(default_factory=set)
    listed: set[int] = field(default_factory=set)
    told: set[int] = field(default_factory=set)
    """Dropped by the answer to the last heartbeat, or since."""
    queued: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    outbox: set[int] = field(default_factory=set)
    """By the last heartbeat; of `outbox` only what is also held."""
    unseen: dict[int, int] = field(default_factory=dict)
    """Granted in this answer, which the worker has not acknowledged."""
    stalled_since: dict[int, float] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)
    """From when on it has, or lists, each ticket; kept only where there are keys."""
    changed: bool = False
    """Something was taken from `held` since the last answer."""
    said: tuple[Ranges, Ranges] | None = None
    """What its last heartbeat lists as queued and as running, if that is all; forgotten with any change."""
    given: int = 0
    received: int = 0
    taken_back: int = 0
    """How often a ticket came into `held`, and left it: with a first copy, whoever sent it, or without."""

    @property
    def load(self) -> int:
        """Return how many tickets need a slot, now or later."""
        return len(self.held) - len(self.outbox)

    @property
    def empty(self) -> bool:
        """Say whether the worker has nothing of this sequence, and nothing is on its way to it."""
        return not (self.held or self.listed or self.unseen)

    def drops(self, repeat: bool) -> set[int]:
        """Return what the next answer drops: all of it, or only what was not told since the heartbeat."""
        drops = self.listed - self.held
        self.changed = False
        if repeat:
            self.told = drops
            return drops
        news = drops - self.told
        self.told |= news
        return news

    def acknowledge(self, answer: int) -> None:
        """Note that the worker has seen this answer and what it granted; later grants may be lost."""
        self.unseen = {number: granted for number, granted in self.unseen.items() if granted > answer}

    def take(self, number: int) -> None:
        """Give the right to keep a ticket, which is not yet held."""
        self.held.add(number)
        self.given += 1
        self.said = None

    def remove(self, number: int, received: bool = False) -> None:
        """Take the right to keep a ticket away, because it is received or for another reason."""
        if number in self.held:
            self.received += received
            self.taken_back += not received
        self.held.discard(number)
        self.outbox.discard(number)
        self.unseen.pop(number, None)
        self.stalled_since.pop(number, None)
        self.changed, self.said = True, None

    def says_no_news(self, holdings: Holdings, sequence: SequenceName) -> bool:
        """Say whether a heartbeat lists just what the last one did, and nothing has happened in between.

        While long episodes are played, that is most of them; `remember` notes what there is to compare with.
        """
        if holdings.outbox or holdings.stalled or holdings.failures or self.unseen:
            return False
        if self.held != self.listed or self.stalled_since:
            return False
        return self.said == (holdings.queued.get(sequence, ()), holdings.running.get(sequence, ()))

    def remember(self, holdings: Holdings, sequence: SequenceName) -> None:
        """Note what a heartbeat lists, once it is taken in, where that is short."""
        said = holdings.queued.get(sequence, ()), holdings.running.get(sequence, ())
        other = holdings.outbox or holdings.stalled or holdings.failures
        self.said = said if not other and len(said[0]) + len(said[1]) <= MOST_REMEMBERED else None

    def take_over(self, listing: Listing, now: float) -> None:
        """Note what a heartbeat lists; an episode that does not arrive counts as stalled, too."""
        self.listed = listing.all()
        self.queued, self.running = listing.queued, listing.running
        self.outbox = listing.outbox & self.held
        stalled = (listing.stalled | listing.outbox) & self.held
        self.stalled_since = {number: self.stalled_since.get(number, now) for number in stalled}
        if self.key:
            self.since = {number: self.since.get(number, now) for number in self.held | self.listed}

    def clear(self) -> None:
        """Forget everything: the worker is gone."""
        for numbers in (self.held, self.listed, self.told, self.queued, self.running, self.outbox):
            numbers.clear()
        self.said = None
        self.unseen.clear()
        self.stalled_since.clear()
        self.since.clear()

    def could_be_running(self, slots: int) -> list[int]:
        """Return what a worker that is gone may have been running: it starts the lowest that it holds."""
        running = self.running & self.held
        waiting = sorted(self.held - running - self.outbox)
        return [*running, *waiting[: max(0, slots - len(running))]]
