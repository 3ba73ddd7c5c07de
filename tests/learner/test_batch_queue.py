"""Batches: in arrival or in started order, whole, and consumed by their versions."""

from __future__ import annotations

import pytest

from learner.hands import Hand
from tests.learner.offices import deliver, grant, make_office, numbers_of


def test_in_arrival_order_the_first_received_make_the_batch() -> None:
    office, hand = make_office(), Hand("a")
    grant(office, hand, 8)
    for number in (7, 2, 5):
        deliver(office, number)
    assert office.batches.take() is None
    deliver(office, 0)
    assert numbers_of(office.batches.take()) == [0, 2, 5, 7]
    assert office.batches.take() is None


def test_in_started_order_a_batch_waits_for_each_of_its_tickets() -> None:
    """1. all of batch 1 arrives; 2. ticket 0 is the last of batch 0; 3. both close, in order."""
    office, hand = make_office("started"), Hand("a")
    grant(office, hand, 8)
    for number in (5, 4, 7, 6, 3, 1, 2):
        deliver(office, number)
    assert office.batches.take() is None
    deliver(office, 0)
    assert numbers_of(office.batches.take()) == [0, 1, 2, 3]
    assert numbers_of(office.batches.take()) == [4, 5, 6, 7]


def test_in_started_order_a_discard_closes_a_smaller_batch() -> None:
    office, hand = make_office("started"), Hand("a")
    grant(office, hand, 8)
    for number in (0, 1, 3):
        deliver(office, number)
    office.train.discard(2, "broken")
    assert office.take_discards() == ["ticket train:2 is discarded: broken"]
    assert numbers_of(office.batches.take()) == [0, 1, 3]
    office.publish(1)
    assert office.check() == []


def test_a_batch_is_consumed_by_its_version() -> None:
    office, hand = make_office(), Hand("a")
    grant(office, hand, 8)
    with pytest.raises(ValueError, match="version 1 cannot follow 0"):
        office.publish(1)
    for number in range(4):
        deliver(office, number)
    office.batches.take()
    assert len(office.train.account.consumed) == 0
    with pytest.raises(ValueError, match="version 2 cannot follow 0"):
        office.publish(2)
    office.publish(1)
    assert office.train.account.consumed.to_ranges() == ((0, 4),)
