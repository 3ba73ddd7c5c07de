"""What became of every ticket and of every delivery, and the two laws that hold at any time.

    issued   = consumed + discarded (by reason) + outstanding        per sequence, number by number
    received = first copies + duplicates + stale + invalid           of deliveries

A train ticket is consumed by the update that trains on it, so the ledger always belongs to the weights of the
newest version; an evaluate ticket when its result is taken. Numbers are issued in order, 0, 1, ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from enum import Enum
from operator import add
from typing import Any

from protocol.messages import Ranges
from protocol.ranges import IntervalSet, to_ranges
from protocol.tickets import SEQUENCES, SequenceName

MOST_UNDONE, MOST_UNDONE_RANGES = 20, 5_000
"""Restarts of which the ledger names what they undid, and in how many ranges."""
MOST_REASONS = 50
"""Distinct reasons of discards kept apart in one sequence; further ones are counted as `other`."""


class Delivery(Enum):
    """What an episode that arrived turned out to be."""

    FIRST = "first copy"
    DUPLICATE = "duplicate"
    STALE = "stale"
    INVALID = "invalid"


class Account:
    """The tickets of one sequence: each number below `issued` is consumed, discarded or outstanding."""

    def __init__(self) -> None:
        self.issued = 0
        self.consumed = IntervalSet()
        self.discarded: dict[str, IntervalSet] = {}
        self.outstanding = IntervalSet()
        self.discards = 0

    def issue(self, count: int) -> range:
        """Issue the next `count` numbers and return them."""
        numbers = range(self.issued, self.issued + count)
        self.outstanding.add_range(numbers.start, numbers.stop)
        self.issued = numbers.stop
        return numbers

    def consume(self, numbers: Iterable[int]) -> None:
        """Settle outstanding numbers as consumed; ValueError if one is not outstanding."""
        for start, stop in to_ranges(numbers):
            self._settle(start, stop)
            self.consumed.add_range(start, stop)

    def discard(self, number: int, reason: str) -> None:
        """Settle an outstanding number as discarded; ValueError if it is not outstanding."""
        self._settle(number, number + 1)
        if reason not in self.discarded and len(self.discarded) >= MOST_REASONS:
            reason = "other"
        self.discarded.setdefault(reason, IntervalSet()).add(number)
        self.discards += 1

    def _settle(self, start: int, stop: int) -> None:
        for number in range(start, stop):
            if number not in self.outstanding:
                raise ValueError(f"ticket {number} is not outstanding")
        self.outstanding.discard_range(start, stop)

    def check(self) -> list[str]:
        """Return the violated laws, each in words."""
        groups = {"consumed": self.consumed, "outstanding": self.outstanding}
        groups |= {f"discarded ({reason})": numbers for reason, numbers in self.discarded.items()}
        problems: list[str] = []
        seen = IntervalSet()
        for name, numbers in groups.items():
            if twice := seen & numbers:
                problems.append(f"{_spell(twice)} stand twice, once as {name}")
            seen |= numbers
        all_issued = IntervalSet([(0, self.issued)])
        if missing := all_issued - seen:
            problems.append(f"{_spell(missing)} were issued and are nowhere")
        if unissued := seen - all_issued:
            problems.append(f"{_spell(unissued)} were never issued")
        if self.issued != (total := sum(map(len, groups.values()))):
            problems.append(f"{self.issued} issued, but {total} consumed, discarded or outstanding")
        return problems

    def to_plain(self) -> dict[str, Any]:
        """Return the account as JSON values, numbers as ranges."""
        return {
            "issued": self.issued,
            "consumed": self.consumed.to_ranges(),
            "discarded": {reason: numbers.to_ranges() for reason, numbers in self.discarded.items()},
            "outstanding": self.outstanding.to_ranges(),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Account:
        """Return the account that `to_plain` described."""
        account = cls()
        account.issued = plain["issued"]
        account.consumed = IntervalSet(plain["consumed"])
        account.discarded = {reason: IntervalSet(ranges) for reason, ranges in plain["discarded"].items()}
        account.outstanding = IntervalSet(plain["outstanding"])
        account.discards = sum(map(len, account.discarded.values()))
        return account


@dataclass(slots=True)
class Deliveries:
    """Episodes received, by what they turned out to be."""

    received: int = 0
    first_copies: int = 0
    duplicates: int = 0
    stale: int = 0
    invalid: int = 0

    def __add__(self, other: Deliveries) -> Deliveries:
        """Return the sum of both, kind by kind."""
        return Deliveries(*map(add, astuple(self), astuple(other)))

    def check(self, whose: str = "") -> list[str]:
        """Return the violated law, in words, if it is."""
        kinds = self.first_copies + self.duplicates + self.stale + self.invalid
        if self.received == kinds:
            return []
        return [f"deliveries{whose}: {self.received} received, but {kinds} of the four kinds"]

    def count(self, delivery: Delivery) -> None:
        """Count one episode received."""
        self.received += 1
        match delivery:
            case Delivery.FIRST:
                self.first_copies += 1
            case Delivery.DUPLICATE:
                self.duplicates += 1
            case Delivery.STALE:
                self.stale += 1
            case Delivery.INVALID:
                self.invalid += 1


@dataclass(frozen=True, slots=True)
class Share:
    """One worker's part in the ledger, since this life of the learner began.

    given = received + taken back + held            of tickets, each time that it was given one
    """

    name: str
    given: int = 0
    received: int = 0
    taken_back: int = 0
    held: int = 0
    deliveries: Deliveries = field(default_factory=Deliveries)

    def __add__(self, other: Share) -> Share:
        """Return both as one, under this one's name."""
        sums = (getattr(self, name) + getattr(other, name) for name in _SUMS)
        return Share(self.name, *sums)

    def check(self) -> list[str]:
        """Return the violated laws, each in words."""
        problems = self.deliveries.check(f" of {self.name}")
        if self.given != self.received + self.taken_back + self.held:
            became = f"{self.received} received, {self.taken_back} taken back, {self.held} held"
            problems.append(f"{self.name}: {self.given} tickets given, but {became}")
        return problems


_SUMS = ("given", "received", "taken_back", "held", "deliveries")


@dataclass(frozen=True, slots=True)
class Shares:
    """All workers' parts: together they make what was delivered since this life of the learner began."""

    earlier: Deliveries
    """Of the lives before."""
    workers: tuple[Share, ...]

    def check(self, deliveries: Deliveries) -> list[str]:
        """Return the violated laws, each in words; `deliveries` are those of the whole run."""
        problems = [problem for share in self.workers for problem in share.check()]
        total = sum((share.deliveries for share in self.workers), self.earlier)
        if total != deliveries:
            problems.append(
                f"deliveries: the workers' make {astuple(total)}, the run's {astuple(deliveries)}"
            )
        return problems

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Shares:
        """Return the shares that `asdict` described; KeyError or TypeError where they are none."""
        workers = (
            Share(**{**row, "deliveries": Deliveries(**row["deliveries"])}) for row in plain["workers"]
        )
        return cls(Deliveries(**plain["earlier"]), tuple(workers))


@dataclass(frozen=True, slots=True)
class Undone:
    """What one life of the learner consumed after the checkpoint that the next one began from."""

    incarnation: int
    updates: tuple[int, int]
    """The first and the last of them."""
    tickets: Ranges
    """Train tickets; they are played again."""

    @property
    def count(self) -> int:
        """Return how many tickets that is."""
        return sum(stop - start for start, stop in self.tickets)


@dataclass(slots=True)
class Ledger:
    """The accounts of both sequences, the deliveries, and what restarts have undone."""

    accounts: dict[SequenceName, Account] = field(
        default_factory=lambda: {sequence: Account() for sequence in SEQUENCES}
    )
    deliveries: Deliveries = field(default_factory=Deliveries)
    rolled_back: int = 0
    """Train tickets consumed after the checkpoints that restarts began from, and played again."""
    undone: tuple[Undone, ...] = ()
    """Which these were, of the last MOST_UNDONE restarts."""
    shares: Shares | None = None
    """By worker, where it is known."""

    def roll_back(self, undone: Sequence[Undone]) -> None:
        """Take in all that the restarts up to now have undone."""
        self.rolled_back = sum(life.count for life in undone)
        self.undone = tuple(undone[-MOST_UNDONE:])
        while sum(len(life.tickets) for life in self.undone) > MOST_UNDONE_RANGES:
            self.undone = self.undone[1:]

    def check(self) -> list[str]:
        """Return the violated laws, each in words; an empty list is a ledger in order."""
        problems = [
            f"{sequence}: {problem}"
            for sequence, account in self.accounts.items()
            for problem in account.check()
        ]
        counts = self.deliveries
        problems += counts.check()
        if self.shares:
            problems += self.shares.check(counts)
        consumed = sum(len(account.consumed) for account in self.accounts.values())
        if consumed > counts.first_copies:
            problems.append(f"deliveries: {consumed} consumed from {counts.first_copies} first copies")
        return problems

    def to_plain(self) -> dict[str, Any]:
        """Return the ledger as JSON values, for the checkpoint and `fleet ledger`."""
        accounts: dict[str, Any] = {name: account.to_plain() for name, account in self.accounts.items()}
        return {
            **accounts,
            "deliveries": asdict(self.deliveries),
            "rolled_back": self.rolled_back,
            "undone": [asdict(life) for life in self.undone],
            "shares": asdict(self.shares) if self.shares else None,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Ledger:
        """Return the ledger that `to_plain` described; KeyError or TypeError where it is none."""
        accounts = {sequence: Account.from_plain(plain[sequence]) for sequence in SEQUENCES}
        undone = tuple(
            Undone(life["incarnation"], (first, last), tuple((begin, end) for begin, end in life["tickets"]))
            for life in plain.get("undone", ())
            for first, last in [life["updates"]]
        )
        shares = Shares.from_plain(plain["shares"]) if plain.get("shares") else None
        return cls(accounts, Deliveries(**plain["deliveries"]), plain["rolled_back"], undone, shares)


def spell_ranges(ranges: Ranges) -> str:
    """Return ranges of tickets as text, such as 4-7, 9; of many the first five."""
    spans = [f"{start}-{stop - 1}" if stop - start > 1 else str(start) for start, stop in ranges[:5]]
    return f"{', '.join(spans)}{', ...' if len(ranges) > 5 else ''}"


def _spell(numbers: IntervalSet) -> str:
    return f"tickets {spell_ranges(numbers.to_ranges())}"
