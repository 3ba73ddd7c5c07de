"""The ticket office: which tickets may be issued, whose episodes count, and when a batch is whole.

The gate is a count. In arrival order the next train ticket is issued while

    issued - discarded < min(version + max_lag + 1, updates) * batch

and a batch closes with the first `batch` episodes received. In started order (exact mode, too) the gate
counts `issued`, a discarded ticket is not replaced, and batch u closes when every ticket of
[u*batch, (u+1)*batch) is received or discarded. Evaluate tickets stand outside the gate, under a cap of
their own.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from learner.book import Book, Limits
from learner.config import RunConfig
from learner.ledger import Delivery, Ledger, Lineage
from protocol.messages import Episode, Grant
from protocol.ranges import to_ranges
from protocol.tickets import SequenceName

EVALUATION_CAP = 64
"""Evaluate tickets outstanding at most while train tickets are still to be issued."""


@dataclass(slots=True)
class EvaluationRequest:
    """Evaluate tickets [start, stop), all to be played under exactly this version."""

    version: int
    start: int
    stop: int
    missing: int
    """Tickets neither received nor discarded."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of one request: its episodes by ticket; a discarded one is absent."""

    version: int
    start: int
    stop: int
    episodes: tuple[Episode, ...]


class TicketOffice:
    """Issues tickets, takes episodes in and closes batches; `state` is a `snapshot()` to go on from.

    Raises ValueError, KeyError or TypeError where `state` does not fit.
    """

    def __init__(
        self,
        config: RunConfig,
        incarnation: int,
        now: float,
        state: Mapping[str, Any] | None = None,
        evaluation_cap: int = EVALUATION_CAP,
    ) -> None:
        self.config, self.evaluation_cap = config, evaluation_cap
        self.ledger = Ledger.from_plain(state["ledger"]) if state else Ledger()
        if problems := self.ledger.check():
            raise ValueError(f"the ledger of the checkpoint is broken: {problems[0]}")
        self.ledger.shares = None  # the workers' parts begin anew
        self.lineage = (
            Lineage(state["lineage"], incarnation, state["version"]) if state else Lineage((), incarnation, 0)
        )
        limits = Limits(config.max_losses, config.stuck_after_seconds, stop=config.exact)
        self.books = {name: Book(name, account, limits) for name, account in self.ledger.accounts.items()}
        self.train, self.evaluate = self.books["train"], self.books["evaluate"]
        self.requests: list[EvaluationRequest] = []
        self._episodes: dict[SequenceName, dict[int, Episode]] = {"train": {}, "evaluate": {}}
        self._arrived: list[int] = []
        """Received train tickets of no closed batch, in arrival order."""
        self._settled_of_batch: Counter[int] = Counter()
        self._next_batch = self.version
        self._closed: deque[list[int]] = deque()
        self._taken = 0
        if state:
            self._restore(state, now)

    @property
    def version(self) -> int:
        """Return the newest version: the number of updates done."""
        return self.lineage.version

    @property
    def closed_batches(self) -> int:
        """Return how many batches are whole and not yet consumed, the one in training included."""
        return len(self._closed)

    @property
    def waiting_episodes(self) -> int:
        """Return how many train episodes are received and not yet taken with a batch."""
        return len(self._episodes["train"])

    def missing(self) -> tuple[int, int] | None:
        """Return, in started order, the oldest ticket that the next batch waits for, and how many those are.

        None where nothing of that batch is outstanding.
        """
        size = self.config.episodes_per_update
        ends = (self._next_batch + 1) * size
        number = next((n for n, ticket in self.train.open.items() if not ticket.received), ends)
        return (number, size - self._settled_of_batch[self._next_batch]) if number < ends else None

    def room(self) -> int:
        """Return how many tickets could be issued to workers now."""
        return len(self.train.pool) + len(self.evaluate.pool) + self._gate() + self._evaluation_room()

    def draw(self, count: int) -> list[tuple[SequenceName, int]]:
        """Return up to `count` tickets to give to workers now: those to be issued again, then new ones."""
        wanted = count - len(self.train.pool) - len(self.evaluate.pool)
        self.evaluate.issue(max(0, min(wanted, self._evaluation_room())))
        drawn: list[tuple[SequenceName, int]] = []
        drawn += [("train", number) for number in self.train.draw(count)]
        drawn += [("evaluate", number) for number in self.evaluate.draw(count - len(drawn))]
        drawn += [("train", number) for number in self.train.issue(min(count - len(drawn), self._gate()))]
        return drawn

    def grants(self, tickets: list[tuple[SequenceName, int]]) -> tuple[Grant, ...]:
        """Return the grants that name these tickets, with the version that each may begin under."""
        grants = []
        for sequence in self.books:
            numbers = [number for name, number in tickets if name == sequence]
            for start, stop in to_ranges(numbers):
                begin = start
                for number in range(start + 1, stop + 1):
                    if number == stop or self.terms(sequence, number) != self.terms(sequence, begin):
                        grants.append(Grant(sequence, begin, number, *self.terms(sequence, begin)))
                        begin = number
        return tuple(grants)

    def terms(self, sequence: SequenceName, number: int) -> tuple[int, bool]:
        """Return the version that a ticket may begin under, and whether it must be exactly this one.

        In arrival order a discarded ticket is replaced by a later number. The floor counts without the
        discarded, or the replacement could ask for a version that waits for the replacement.
        """
        if sequence == "evaluate":
            return next(r.version for r in self.requests if r.start <= number < r.stop), True
        if self.config.order == "arrival":
            number -= self.train.account.discards
        return max(0, number // self.config.episodes_per_update - self.config.max_lag), self.config.exact

    def deliver(self, episode: Episode, invalid: str = "") -> Delivery:
        """Take an episode in and say what it is; only a first copy is kept.

        Where its sender holds its ticket, an invalid one is a failure and a stale one gives the ticket back.
        """
        delivery = self._judge(episode, invalid)
        self.ledger.deliveries.count(delivery)
        sequence, number = episode.ticket.sequence, episode.ticket.number
        book = self.books[sequence]
        if delivery is Delivery.FIRST:
            self._episodes[sequence][number] = episode
            book.receive(number, episode.session)
            if sequence == "train" and self.config.order == "arrival":
                self._arrived.append(number)
            self._settled(sequence, number)
        elif delivery is Delivery.STALE:
            for hand in book.holders(number, episode.session):
                book.revoke(number, hand)
        elif delivery is Delivery.INVALID:
            for hand in book.holders(number, episode.session):
                book.fail(number, hand, f"invalid episode: {invalid}")
        return delivery

    def publish(self, version: int) -> None:
        """Note that an update is done: its batch is consumed, and its version is the newest.

        Raises ValueError unless `version` is the next one and its batch was taken.
        """
        if version != self.version + 1 or not self._taken:
            raise ValueError(f"version {version} cannot follow {self.version}, {self._taken} batches taken")
        self.train.consume(self._closed.popleft())
        self._taken -= 1
        self.lineage.version = version

    def take_batch(self) -> list[Episode] | None:
        """Return the next whole batch by ticket, None if there is none yet.

        In started order discards leave it smaller, or even empty. Batch u makes version u + 1.
        """
        if self._taken == len(self._closed):
            return None
        numbers = self._closed[self._taken]
        self._taken += 1
        return [self._episodes["train"].pop(number) for number in numbers]

    def request_evaluation(self, version: int, episodes: int) -> range:
        """Ask for fresh episodes under exactly this version; return their evaluate numbers."""
        start = self._planned()
        self.requests.append(EvaluationRequest(version, start, start + episodes, episodes))
        return range(start, start + episodes)

    def take_evaluation(self) -> Evaluation | None:
        """Return a finished evaluation, None if there is none; its tickets are consumed herewith."""
        done = next((request for request in self.requests if request.missing == 0), None)
        if done is None:
            return None
        episodes = self._episodes["evaluate"]
        numbers = [number for number in range(done.start, done.stop) if number in episodes]
        self.evaluate.consume(numbers)
        self.requests.remove(done)
        return Evaluation(
            done.version, done.start, done.stop, tuple(episodes.pop(number) for number in numbers)
        )

    def pinned_versions(self) -> set[int]:
        """Return the versions whose weights must be kept, to be sent or played under."""
        oldest = self.version - self.config.max_lag if self.config.exact else self.version
        return {*range(max(0, oldest), self.version + 1), *(request.version for request in self.requests)}

    def take_discards(self) -> list[str]:
        """Return one line per newly discarded ticket, and close what their going makes whole."""
        lines = []
        for book in self.books.values():
            for ticket, reason in book.discards:
                lines.append(f"ticket {ticket} is discarded: {reason}")
                self._settled(ticket.sequence, ticket.number)
            book.discards.clear()
        return lines

    def snapshot(self) -> dict[str, Any]:
        """Return all that a restart needs as JSON values; it belongs to the weights of `version`."""
        return {
            "version": self.version,
            "lineage": [list(entry) for entry in self.lineage.entries()],
            "ledger": self.ledger.to_plain(),
            "strikes": self.train.strikes(),
        }

    def check(self) -> list[str]:
        """Return the violated laws of the ledger and of the books, in words."""
        return self.ledger.check() + [problem for book in self.books.values() for problem in book.check()]

    def _restore(self, state: Mapping[str, Any], now: float) -> None:
        """Leave everything outstanding unclaimed: what was received and not consumed is lost.

        In synchronous mode no worker can claim it, and it may be issued again at once. Evaluations are
        discarded: whoever wanted them asks again, under weights that are still kept.
        """
        claimable = self.config.liveness_seconds if self.config.mode == "async" else 0.0
        self.train.unclaimed = dict.fromkeys(self.train.open, now + claimable)
        self.train.expire(now)
        self.train.recall_strikes(state["strikes"])
        for number in list(self.evaluate.open):
            self.evaluate.discard(number, "learner restarted")
        self.evaluate.discards.clear()
        for numbers in self.train.account.discarded.values():
            for number in numbers:
                self._settled_of_batch[number // self.config.episodes_per_update] += 1
        self._close()

    def _judge(self, episode: Episode, invalid: str) -> Delivery:
        sequence, number = episode.ticket.sequence, episode.ticket.number
        book = self.books[sequence]
        if invalid:
            return Delivery.INVALID
        ticket = book.open.get(number)
        if ticket is None and number >= book.account.issued:
            past = episode.version.incarnation < self.lineage.incarnation
            return Delivery.STALE if past else Delivery.INVALID
        if ticket is None or ticket.received:
            return Delivery.DUPLICATE
        version, exact = self.terms(sequence, number)
        under = episode.version.number
        fits = under == version if exact else under >= version
        return (
            Delivery.FIRST
            if fits and self.lineage.accepts(episode.version.incarnation, under)
            else Delivery.STALE
        )

    def _gate(self) -> int:
        config = self.config
        allowed = min(self.version + config.max_lag + 1, config.updates) * config.episodes_per_update
        return max(0, allowed - (self.train.account.issued - self._replaced()))

    def _evaluation_room(self) -> int:
        planned = self._planned() - self.evaluate.account.issued
        if self.train.account.issued - self._replaced() >= self.config.planned_episodes:
            return planned
        playing = len(self.evaluate.open) - len(self._episodes["evaluate"])
        return max(0, min(planned, self.evaluation_cap - playing))

    def _planned(self) -> int:
        return max([self.evaluate.account.issued, *(request.stop for request in self.requests)])

    def _replaced(self) -> int:
        return self.train.account.discards if self.config.order == "arrival" else 0

    def _settled(self, sequence: SequenceName, number: int) -> None:
        """Count a ticket that is received or discarded towards its batch, or its evaluation."""
        if sequence == "evaluate":
            for request in self.requests:
                request.missing -= request.start <= number < request.stop
            return
        self._settled_of_batch[number // self.config.episodes_per_update] += 1
        self._close()

    def _close(self) -> None:
        """Close every batch that is whole."""
        size, received = self.config.episodes_per_update, self._episodes["train"]
        if self.config.order == "arrival":
            while len(self._arrived) >= size:
                self._closed.append(sorted(self._arrived[:size]))
                del self._arrived[:size]
            return
        while self._settled_of_batch[self._next_batch] == size:
            first = self._next_batch * size
            self._closed.append([number for number in range(first, first + size) if number in received])
            del self._settled_of_batch[self._next_batch]
            self._next_batch += 1
