"""The ticket office: which tickets may be issued, on which terms, and whose episodes count.

The gate is a count. In arrival order the next train ticket is issued while

    issued - discarded < min(version + max_lag + 1, updates) * batch

In started order (exact mode, too) the gate counts `issued`: a discarded ticket is not replaced. What is
received goes on to the batches, or to the evaluations, which stand outside the gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from learner.batch_queue import BatchQueue
from learner.book import Book
from learner.config import RunConfig
from learner.evaluation_requests import EVALUATION_CAP, EvaluationRequests
from learner.ledger import Delivery, Ledger
from learner.lineage import Lineage
from learner.open_ticket import Limits
from protocol.messages import Episode, Grant
from protocol.ranges import to_ranges
from protocol.tickets import SequenceName


class TicketOffice:
    """Issues tickets and takes episodes in; `state` is a `snapshot()` to go on from.

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
        self.config = config
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
        self.batches = BatchQueue(config, self.train, self.version)
        self.evaluations = EvaluationRequests(self.evaluate, evaluation_cap)
        if state:
            self._restore(state, now)

    @property
    def version(self) -> int:
        """Return the newest version: the number of updates done."""
        return self.lineage.version

    @property
    def issued(self) -> int:
        """Return how many train tickets are issued, without those that later ones replace."""
        account = self.train.account
        return account.issued - (account.discards if self.config.order == "arrival" else 0)

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
            return self.evaluations.version_of(number), True
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
            book.receive(number, episode.session)
            self._destination(sequence).receive(episode)
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
        if version != self.version + 1 or not self.batches.taken:
            taken = self.batches.taken
            raise ValueError(f"version {version} cannot follow {self.version}, {taken} batches taken")
        self.batches.consume()
        self.lineage.version = version

    def pinned_versions(self) -> set[int]:
        """Return the versions whose weights must be kept, to be sent or played under."""
        oldest = self.version - self.config.max_lag if self.config.exact else self.version
        return {*range(max(0, oldest), self.version + 1), *self.evaluations.versions()}

    def take_discards(self) -> list[str]:
        """Return one line per newly discarded ticket, and count them towards what waited for them."""
        lines = []
        for book in self.books.values():
            for ticket, reason in book.discards:
                lines.append(f"ticket {ticket} is discarded: {reason}")
                self._destination(ticket.sequence).settle(ticket.number)
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
        return max(0, allowed - self.issued)

    def _evaluation_room(self) -> int:
        return self.evaluations.room(train_is_issued=self.issued >= self.config.planned_episodes)

    def _destination(self, sequence: SequenceName) -> BatchQueue | EvaluationRequests:
        return self.batches if sequence == "train" else self.evaluations
