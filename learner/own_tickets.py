"""The tickets that the learner itself plays, in synchronous mode: a hand that nobody can lose."""

from __future__ import annotations

from collections.abc import Iterable

from learner.hands import Hand
from learner.tickets import TicketOffice
from protocol.tickets import SEQUENCES, SequenceName, Ticket

SESSION = "learner"
"""What stands as the session of episodes that the learner built."""
_AT_ONCE = 100_000


class OwnTickets:
    """Draws tickets of an office and counts what goes wrong with them; belongs to the office's thread."""

    def __init__(self, office: TicketOffice) -> None:
        self._office = office
        self._hands: dict[SequenceName, Hand] = {sequence: Hand(SESSION) for sequence in SEQUENCES}

    def draw(self) -> list[tuple[Ticket, int]]:
        """Take all tickets that may be issued now; return each with the version it is to be played under."""
        office, drawn = self._office, []
        for name, number in office.draw(_AT_ONCE):
            office.books[name].give(number, self._hands[name], answer=0)
            version = office.version if name == "train" else office.terms(name, number)[0]
            drawn.append((Ticket(name, number), version))
        return drawn

    def delivered(self) -> None:
        """Forget the tickets whose episodes have been delivered."""
        for hand in self._hands.values():
            hand.listed.clear()

    def failed(self, ticket: Ticket, reason: str) -> bool:
        """Count a failure; return whether the ticket is to be played again."""
        book = self._office.books[ticket.sequence]
        book.count_failure(ticket.number, reason)
        return ticket.number in book.open

    def lost(self, tickets: Iterable[Ticket]) -> list[Ticket]:
        """Count the loss of the worker that hosted these tickets; return those given up for it."""
        return [ticket for ticket in tickets if self._gone(ticket, stuck=False)]

    def stuck(self, tickets: Iterable[Ticket]) -> list[Ticket]:
        """Count that the worker of these tickets makes no progress; return those given up for it."""
        return [ticket for ticket in tickets if self._gone(ticket, stuck=True)]

    def discard(self, ticket: Ticket, reason: str) -> None:
        """Give a ticket up."""
        self._office.books[ticket.sequence].discard(ticket.number, reason)

    def _gone(self, ticket: Ticket, stuck: bool) -> bool:
        book = self._office.books[ticket.sequence]
        (book.count_stuck if stuck else book.count_loss)(ticket.number)
        return ticket.number not in book.open
