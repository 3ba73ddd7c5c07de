"""Evaluate tickets: outside the gate, under their cap and version, returned request by request."""

from __future__ import annotations

from learner.hands import Hand
from learner.ledger import Delivery
from protocol.messages import Grant
from tests.learner.offices import deliver, grant, make_office, numbers_of


def test_evaluate_tickets_stand_outside_the_gate_under_their_cap_and_pin_their_version() -> None:
    """1. the gate is shut; 2. 6 episodes are asked for, 4 may be out; 3. one arrives, the next may go."""
    office, hand = make_office(evaluation_cap=4), Hand("a")
    grant(office, hand, 100)
    assert office.evaluations.add(0, 6) == range(6)
    assert office.draw(100) == [("evaluate", number) for number in range(4)]
    for number in range(4):
        office.evaluate.give(number, hand, 1)
    assert office.draw(100) == []
    assert deliver(office, 2, sequence="evaluate") is Delivery.FIRST
    assert office.draw(100) == [("evaluate", 4)]
    assert office.grants([("evaluate", 4)]) == (Grant("evaluate", 4, 5, 0, exact=True),)
    for number in range(4):
        deliver(office, number)
    office.batches.take()
    office.publish(1)
    assert office.pinned_versions() == {0, 1}
    assert deliver(office, 1, version=1, sequence="evaluate") is Delivery.STALE


def test_an_evaluation_is_returned_whole_and_by_number() -> None:
    office, hand = make_office(updates=1, evaluation_cap=1), Hand("a")
    grant(office, Hand("a"), 4)
    assert office.evaluations.add(0, 3) == range(3) and office.evaluations.add(0, 2) == range(3, 5)
    drawn = office.draw(100)
    assert len(drawn) == 5, "once no train ticket is to come, nothing holds them back"
    for _, number in drawn:
        office.evaluate.give(number, hand, 1)
    deliver(office, 2, sequence="evaluate")
    deliver(office, 0, sequence="evaluate")
    assert office.evaluations.take() is None
    office.evaluate.discard(1, "broken")
    office.take_discards()
    evaluation = office.evaluations.take()
    assert evaluation is not None and numbers_of(evaluation.episodes) == [0, 2]
    assert (evaluation.start, evaluation.stop, evaluation.version) == (0, 3, 0)
    assert office.evaluations.take() is None
    assert office.evaluate.account.consumed.to_ranges() == ((0, 1), (2, 3)) and office.check() == []
