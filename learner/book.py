"""The outstanding tickets of one sequence: where each one is, and which are to be issued again.

An outstanding ticket is in exactly one place:

    pool        waits to be issued again, the lowest number first
    held        may be kept by one worker or, where the first is stuck, by several (`holders`)
    returning   taken away from a worker whose heartbeat still lists it (`leaving`); then to the pool
    unclaimed   held before a restart, or pushed by a worker that left; to the pool at its deadline
    received    its first valid copy is here

A ticket goes back to the pool only when nobody lists it any more, so no worker is ever granted a ticket that
it still has, and revoking one never plays it twice.
"""

from __future__ import annotations

from collections.abc import Iterable

from learner.hands import Hand, Listing
from learner.instructions import one_line
from learner.ledger import Account
from learner.open_ticket import Limits, OpenTicket
from protocol.tickets import SequenceName, Ticket


class Book:
    """Keeps every outstanding ticket of one sequence in its place."""

    def __init__(self, sequence: SequenceName, account: Account, limits: Limits) -> None:
        self.sequence, self.account, self.limits = sequence, account, limits
        self.open: dict[int, OpenTicket] = {
            number: OpenTicket(inherited=True) for number in account.outstanding
        }
        self.pool: set[int] = set()
        self.returning: set[int] = set()
        self.again: set[int] = set()
        """Held, but stuck: to be issued to one more worker."""
        self.unclaimed: dict[int, float] = {}
        """Until when a worker may still claim it, or its episode arrive."""
        self.discards: list[tuple[Ticket, str]] = []
        """New ones, for whoever closes batches and tells the user."""
        self.stopped = ""
        """Why the run must stop, in exact mode."""

    def issue(self, count: int) -> range:
        """Issue the next `count` tickets, to the pool, and return them."""
        numbers = self.account.issue(count)
        self.open |= {number: OpenTicket() for number in numbers}
        self.pool.update(numbers)
        return numbers

    def draw(self, count: int) -> list[int]:
        """Return the lowest `count` tickets of the pool, which the caller gives to workers now."""
        return sorted(self.pool)[:count]

    def give(self, number: int, hand: Hand, answer: int) -> None:
        """Let a worker have a ticket, granted in this answer."""
        ticket = self.open[number]
        ticket.holders.append(hand)
        ticket.inherited = False
        if hand.key:
            ticket.keys.add(hand.key)
        hand.take(number)
        hand.unseen[number] = answer
        self._place(number, ticket)

    def restate(self, hand: Hand, listing: Listing, seen: int, now: float) -> None:
        """Take in a heartbeat, which lists all that a worker holds; `seen` is the last answer it knows of."""
        hand.acknowledge(seen)
        self.issue_missing_again(hand, listing)
        self.let_go(hand, listing)
        self.claim_listed(hand, listing)
        hand.take_over(listing, now)
        for number, failure in listing.failures.items():
            self.fail(number, hand, failure.reason, failure.final)

    def claim(self, hand: Hand, listing: Listing) -> None:
        """Take in a hello: what it lists and nobody else has is the worker's; nothing is taken away."""
        self.claim_listed(hand, listing)
        hand.listed |= listing.all()

    def issue_missing_again(self, hand: Hand, listing: Listing) -> None:
        """Issue again what was granted in an answer that the worker has seen, and what it does not list."""
        for number in hand.held - listing.all() - hand.unseen.keys():
            self._release(number, hand)

    def let_go(self, hand: Hand, listing: Listing) -> None:
        """Note that the worker no longer lists what was taken away from it: then it may be issued again."""
        for number in hand.listed - listing.all() - hand.held:
            self._left(number, hand)

    def claim_listed(self, hand: Hand, listing: Listing) -> None:
        """Let a worker keep what it lists, though not by this learner's grant, where nobody else has it."""
        for number in listing.all() - hand.held:
            self._claim(number, hand, waits=number in listing.queued)

    def receive(self, number: int, session: str) -> None:
        """Take the first valid copy of an outstanding ticket; whoever holds it may forget it."""
        ticket = self.open[number]
        for hand in ticket.holders:
            hand.remove(number, received=True)
            if hand.session == session:
                hand.listed.add(number)
        ticket.received = True
        ticket.holders.clear()
        ticket.leaving.clear()
        self.unclaimed.pop(number, None)
        self._place(number, ticket)

    def consume(self, numbers: Iterable[int]) -> None:
        """Settle received tickets."""
        numbers = list(numbers)
        self.account.consume(numbers)
        for number in numbers:
            del self.open[number]

    def discard(self, number: int, reason: str) -> None:
        """Give a ticket up; in exact mode the limits stop the run instead (`_give_up`)."""
        ticket = self.open.pop(number)
        for hand in ticket.holders:
            hand.remove(number)
        for place in (self.pool, self.returning, self.again):
            place.discard(number)
        self.unclaimed.pop(number, None)
        self.account.discard(number, reason)
        self.discards.append((Ticket(self.sequence, number), reason))

    def holders(self, number: int, session: str) -> list[Hand]:
        """Return the hand of a session, if that holds this ticket and the ticket is open."""
        ticket = self.open.get(number)
        return [hand for hand in ticket.holders if hand.session == session] if ticket else []

    def may_be_of(self, number: int, key: str) -> bool:
        """Say whether the owner of a key may have a ticket, so far as is known."""
        ticket = self.open.get(number)
        return ticket is None or ticket.may_be_of(key)

    def revoke(self, number: int, hand: Hand) -> None:
        """Take a ticket away from a worker that has it; it is issued again once no longer listed."""
        ticket = self.open[number]
        ticket.holders.remove(hand)
        ticket.leaving.append(hand)
        hand.remove(number)
        hand.listed.add(number)
        self._place(number, ticket)

    def fail(self, number: int, hand: Hand, reason: str, final: bool = False) -> None:
        """Count a failure that a holder reports, a final one as the last; others may report anything."""
        if number not in hand.held:
            return
        self.revoke(number, hand)
        self.count_failure(number, reason, final)

    def count_failure(self, number: int, reason: str, final: bool = False) -> None:
        """Count a failure of an outstanding ticket; the third time, or a final one, and it is discarded."""
        if self.open[number].count_failure(final):
            self._give_up(number, reason)

    def lose(self, hand: Hand, running: Iterable[int]) -> None:
        """Issue again what a lost worker held, and count the loss against what it was running."""
        self.leave(hand)
        for number in running:
            self.count_loss(number)

    def count_loss(self, number: int) -> None:
        """Count the loss of a worker against a ticket that it was running, if it is still outstanding."""
        ticket = self.open.get(number)
        if ticket and ticket.count_loss(self.limits):
            self._give_up(number, "kills workers")

    def leave(self, hand: Hand, outbox: Iterable[int] = (), until: float = 0.0) -> None:
        """Issue again what a gone worker held; episodes of its outbox may still arrive `until` then."""
        for number in hand.held.intersection(outbox):
            if self.open[number].holders == [hand]:
                self.unclaimed[number] = until
        for number in list(hand.held):
            self._release(number, hand)
        for number in hand.listed:
            self._left(number, hand)
        hand.clear()

    def expire(self, now: float) -> None:
        """Move the unclaimed tickets whose time is over to the pool."""
        for number in [number for number, until in self.unclaimed.items() if now >= until]:
            del self.unclaimed[number]
            self._place(number, self.open[number])

    def unstick(self, hand: Hand, now: float) -> bool:
        """Issue tickets on which no holder makes progress to one more worker; the third time discard them.

        Return whether there was any. The worker loses what it has queued: it would not begin it.
        """
        any_stuck = False
        before = now - self.limits.stuck_after_seconds
        for number in [number for number, since in hand.stalled_since.items() if since <= before]:
            ticket = self.open[number]
            if all(holder.stalled_since.get(number, now) <= before for holder in ticket.holders):
                for holder in ticket.holders:
                    holder.stalled_since[number] = now
                any_stuck = True
                self.count_stuck(number)
        for number in hand.queued & hand.held if any_stuck else ():
            self.revoke(number, hand)
        return any_stuck

    def count_stuck(self, number: int) -> None:
        """Count that no holder of a ticket makes progress; the third time it is discarded."""
        ticket = self.open[number]
        too_often = ticket.count_stuck()
        self._place(number, ticket)
        if too_often:
            self._give_up(number, "stuck")

    def strikes(self) -> list[list[int]]:
        """Return [number, failures, losses, stuck] of each ticket with any, for a checkpoint."""
        return [[number, *ticket.strikes] for number, ticket in self.open.items() if any(ticket.strikes)]

    def recall_strikes(self, strikes: Iterable[Iterable[int]]) -> None:
        """Take over what `strikes` returned before a restart."""
        for number, failures, losses, stuck in strikes:
            self.open[number].strikes = failures, losses, stuck

    def check(self) -> list[str]:
        """Return the violations of "each outstanding ticket is in exactly one place", in words."""
        problems = []
        if list(self.account.outstanding) != sorted(self.open):
            problems.append("the outstanding tickets of the ledger are not those of the book")
        for number, ticket in self.open.items():
            places = {
                "pool": number in self.pool,
                "held": bool(ticket.holders),
                "returning": number in self.returning,
                "unclaimed": number in self.unclaimed,
                "received": ticket.received,
            }
            if sum(places.values()) != 1:
                names = [name for name, here in places.items() if here]
                problems.append(f"ticket {number} is in {' and '.join(names) or 'no place'}")
            for hand in ticket.holders:
                if number not in hand.held:
                    problems.append(f"ticket {number} is held by {hand.session}, which does not know it")
        return [f"{self.sequence}: {problem}" for problem in problems]

    def _claim(self, number: int, hand: Hand, waits: bool) -> None:
        """Decide on a listed ticket that its worker does not rightfully hold: let it, or have it dropped.

        One that is played or finished may be kept beside another holder; others' queues lose it.
        """
        ticket = self.open.get(number)
        if ticket is None or ticket.received or hand in ticket.leaving or not ticket.may_be_of(hand.key):
            return
        if waits and ticket.holders:
            ticket.leaving.append(hand)
            return
        for other in list(ticket.holders):
            if number in other.queued:
                self.revoke(number, other)
        self.unclaimed.pop(number, None)
        if hand.key:
            ticket.keys.add(hand.key)
        ticket.holders.append(hand)
        hand.take(number)
        self._place(number, ticket)

    def _release(self, number: int, hand: Hand) -> None:
        ticket = self.open[number]
        ticket.holders.remove(hand)
        hand.remove(number)
        self._place(number, ticket)

    def _left(self, number: int, hand: Hand) -> None:
        ticket = self.open.get(number)
        if ticket is not None and hand in ticket.leaving:
            ticket.leaving.remove(hand)
            self._place(number, ticket)

    def _place(self, number: int, ticket: OpenTicket) -> None:
        """Put a ticket where it belongs now; the one door into pool, returning and again."""
        vacant = not (ticket.received or ticket.holders or number in self.unclaimed)
        (self.pool.add if vacant and not ticket.leaving else self.pool.discard)(number)
        (self.returning.add if vacant and ticket.leaving else self.returning.discard)(number)
        again = 0 < len(ticket.holders) <= ticket.stuck
        (self.again.add if again else self.again.discard)(number)

    def _give_up(self, number: int, reason: str) -> None:
        reason = one_line(reason)
        if self.limits.stop:
            self.stopped = (
                self.stopped or f"exact mode cannot leave out ticket {self.sequence}:{number}: {reason}"
            )
        else:
            self.discard(number, reason)
