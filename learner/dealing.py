"""Who gets the next tickets: idle slots first, everywhere, then one queued ticket per slot."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from learner.sessions import Session
from learner.tickets import TicketOffice
from protocol.tickets import SequenceName

QUEUED_PER_SLOT = 1


def deal(office: TicketOffice, idle: Sequence[Session], topped_up: Sequence[Session]) -> None:
    """Give tickets to the idle slots of `idle`, then to the queues of `topped_up`; nothing to who is full.

    What is left idle is filled from the queues of others: those tickets are revoked now, and dealt by a later
    call once their holders no longer list them.
    """
    _deal_again(office, idle)
    for sessions, per_slot in ((idle, 1), (topped_up, 1 + QUEUED_PER_SLOT)):
        spaces = [max(0, session.slots * per_slot - session.load) for session in sessions]
        count = min(sum(spaces), office.room()) if any(spaces) else 0
        if count:
            tickets = iter(office.draw(count))
            for session, share in zip(sessions, shares(sessions, per_slot, count), strict=True):
                for _ in range(share):
                    _give(office, session, *next(tickets))


def shares(sessions: Sequence[Session], per_slot: int, count: int) -> list[int]:
    """Return how many of `count` tickets each session gets: the next goes where load / slots is lowest."""
    result = [0] * len(sessions)
    heap = [(session.load / session.slots, place, session.load) for place, session in enumerate(sessions)]
    heapq.heapify(heap)
    for _ in range(count):
        _, place, load = heap[0]
        slots = sessions[place].slots
        if load >= slots * per_slot:
            break
        result[place] += 1
        heapq.heapreplace(heap, ((load + 1) / slots, place, load + 1))
    return result


def rebalance(office: TicketOffice, takers: Sequence[Session]) -> None:
    """While none can be issued, revoke as many queued tickets of busy workers as slots are idle elsewhere."""
    wanted = sum(max(0, session.slots - session.load) for session in takers)
    wanted -= sum(len(book.returning) for book in office.books.values())
    if wanted <= 0:
        return
    for session in sorted(takers, key=lambda session: session.slots - session.load):
        if wanted == 0 or session.load <= session.slots:
            return
        for name, hand in session.hands.items():
            spare = min(wanted, session.load - session.slots)
            for number in sorted(hand.queued & hand.held, reverse=True)[:spare]:
                office.books[name].revoke(number, hand)
                wanted -= 1
                session.due = True


def _deal_again(office: TicketOffice, sessions: Sequence[Session]) -> None:
    """Give each stuck ticket to one more worker, to one that never had it; there it may wait in the queue."""
    for name, book in office.books.items():
        for number in sorted(book.again):
            takers = [
                session
                for session in sessions
                if session.load < session.slots * (1 + QUEUED_PER_SLOT)
                and number not in session.hands[name].held | session.hands[name].listed
            ]
            if takers:
                _give(office, min(takers, key=lambda session: session.load / session.slots), name, number)


def _give(office: TicketOffice, session: Session, name: SequenceName, number: int) -> None:
    office.books[name].give(number, session.hands[name], session.answers + 1)
    session.grants.append((name, number))
