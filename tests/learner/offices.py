"""Ticket offices with batches of four, and what workers and episodes do to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from learner.config import RunConfig
from learner.hands import Hand, Listing
from learner.ledger import Delivery
from learner.tickets import TicketOffice
from protocol.messages import Episode, Failure, Version
from protocol.tickets import SequenceName, Ticket

NOTHING: Any = np.zeros(1, np.float32)
BATCH = 4


def make_office(
    order: Literal["arrival", "started"] = "arrival",
    exact: bool = False,
    updates: int = 5,
    max_lag: int = 1,
    state: dict[str, Any] | None = None,
    incarnation: int = 1,
    **options: Any,
) -> TicketOffice:
    config = RunConfig(
        episodes_per_update=BATCH,
        total_episodes=BATCH * updates,
        max_lag=max_lag,
        order=order,
        exact=exact,
        max_losses=2,
        stuck_after_seconds=10.0,
        liveness_seconds=5.0,
    )
    return TicketOffice(config, incarnation, 0.0, state, **options)


def listing(
    queued: Iterable[int] = (),
    running: Iterable[int] = (),
    outbox: Iterable[int] = (),
    stalled: Iterable[int] = (),
    failures: Mapping[int, str] | None = None,
) -> Listing:
    failed = {number: Failure(Ticket("train", number), reason) for number, reason in (failures or {}).items()}
    return Listing(set(queued), set(running), set(outbox), set(stalled), failed)


def grant(office: TicketOffice, hand: Hand, count: int, answer: int = 1) -> list[int]:
    """Give a worker up to `count` tickets of the train sequence, granted in this answer."""
    numbers = [number for name, number in office.draw(count) if name == "train"]
    for number in numbers:
        office.train.give(number, hand, answer)
    return numbers


def deliver(
    office: TicketOffice,
    number: int,
    version: int = 0,
    incarnation: int = 1,
    session: str = "a",
    sequence: SequenceName = "train",
    invalid: str = "",
) -> Delivery:
    ticket, stamp = Ticket(sequence, number), Version(incarnation, version)
    episode = Episode("run", session, ticket, stamp, True, 1.0, NOTHING, NOTHING, NOTHING, NOTHING)
    return office.deliver(episode, invalid)


def numbers_of(episodes: Sequence[Episode] | None) -> list[int]:
    assert episodes is not None
    return [episode.ticket.number for episode in episodes]
