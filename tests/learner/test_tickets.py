"""The ticket office: gate, terms, deliveries, recovery, and the law that it keeps with its books."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from learner.hands import Hand
from learner.ledger import Delivery
from learner.tickets import TicketOffice
from protocol.messages import Grant
from protocol.tickets import SequenceName
from tests.learner.offices import BATCH, deliver, grant, listing, make_office, numbers_of

# The gate


def test_the_gate_counts_and_replaces_what_is_discarded() -> None:
    office, hand = make_office(), Hand("a")
    assert grant(office, hand, 100) == list(range(8)), "(version 0 + max_lag 1 + 1) batches of 4"
    assert office.room() == 0
    office.train.discard(3, "broken")
    assert grant(office, hand, 100) == [8]


def test_the_gate_opens_with_each_version_up_to_what_the_updates_need() -> None:
    office, hand = make_office(updates=3), Hand("a")
    grant(office, hand, 100)
    for update in range(3):
        for number in range(4 * update, 4 * update + 4):
            assert deliver(office, number, version=update) is Delivery.FIRST
        assert numbers_of(office.batches.take()) == list(range(4 * update, 4 * update + 4))
        office.publish(update + 1)
        assert len(grant(office, hand, 100)) == (4 if update == 0 else 0)
    assert office.train.account.issued == 12 and not office.train.account.outstanding


def test_in_started_order_the_gate_does_not_replace_discards() -> None:
    office, hand = make_office("started"), Hand("a")
    grant(office, hand, 100)
    office.train.discard(3, "broken")
    assert grant(office, hand, 100) == []


# Terms


def test_grants_carry_the_lowest_version_that_may_play_them() -> None:
    office = make_office(max_lag=1)
    tickets: list[tuple[SequenceName, int]] = [("train", number) for number in (13, 6, 7, 8, 9, 2)]
    assert office.grants(tickets) == (
        Grant("train", 2, 3, 0),
        Grant("train", 6, 8, 0),
        Grant("train", 8, 10, 1),
        Grant("train", 13, 14, 2),
    )


def test_exact_grants_name_one_version() -> None:
    office = make_office("started", exact=True, max_lag=2)
    assert office.grants([("train", 11), ("train", 12)]) == (
        Grant("train", 11, 12, 0, exact=True),
        Grant("train", 12, 13, 1, exact=True),
    )


def test_replacing_many_discards_never_asks_for_a_version_to_come() -> None:
    office, hand = make_office(max_lag=0), Hand("a")
    for _ in range(5):
        for number in grant(office, hand, 4):
            office.train.discard(number, "broken")
    (number, *_) = grant(office, hand, 4)
    assert number == 20 and office.terms("train", number) == (0, False)


# Deliveries


def test_the_first_copy_counts_whoever_sends_it() -> None:
    """1. a is granted 0; 2. b sends it; 3. a's copy is a duplicate, before and after consumption."""
    office, hand = make_office(), Hand("a")
    grant(office, hand, 4)
    assert deliver(office, 0, session="b") is Delivery.FIRST
    assert deliver(office, 0, session="a") is Delivery.DUPLICATE
    for number in (1, 2, 3):
        deliver(office, number)
    office.batches.take()
    office.publish(1)
    assert deliver(office, 0) is Delivery.DUPLICATE
    assert hand.held == set()
    counts = office.ledger.deliveries
    assert (counts.received, counts.first_copies, counts.duplicates) == (6, 4, 2)


def test_what_was_never_issued_is_invalid_or_from_a_past_life() -> None:
    office = make_office(state=make_office().snapshot(), incarnation=2)
    assert deliver(office, 99, incarnation=2) is Delivery.INVALID
    assert deliver(office, 99, incarnation=1) is Delivery.STALE


def test_a_stale_episode_gives_its_ticket_back_once_its_sender_has_dropped_it() -> None:
    """1. a plays 8 under 0, its floor is 1: stale; 2. a still lists it; 3. no longer: issued again."""
    office, hand = make_office(max_lag=1), Hand("a")
    grant(office, hand, 8)
    for number in range(4):
        deliver(office, number)
    office.batches.take()
    office.publish(1)
    assert grant(office, hand, 1) == [8]
    assert deliver(office, 8, version=0) is Delivery.STALE
    office.train.restate(hand, listing(queued=range(4, 8), outbox=[8]), 1, 1.0)
    assert hand.drops(repeat=True) == {8} and office.draw(1) == [("train", 9)]
    office.train.restate(hand, listing(queued=range(4, 8)), 2, 2.0)
    assert office.draw(1) == [("train", 8)]
    assert office.check() == []


@pytest.mark.parametrize(
    ("version", "delivery"), [(0, Delivery.STALE), (1, Delivery.FIRST), (2, Delivery.STALE)]
)
def test_exact_mode_takes_one_version_only(version: int, delivery: Delivery) -> None:
    office, hand = make_office("started", exact=True, max_lag=1), Hand("a")
    grant(office, hand, 8)
    for update in range(2):
        for number in range(4 * update, 4 * update + 4):
            deliver(office, number)
        office.batches.take()
        office.publish(update + 1)
    grant(office, hand, 8)
    assert deliver(office, 8, version=version) is delivery


def test_a_dead_lineage_is_stale() -> None:
    """1. checkpoint at 0; 2. incarnation 1 publishes 1 and dies; 3. its version 1 is not incarnation 2's."""
    office, hand = make_office(), Hand("a")
    grant(office, hand, 8)
    office = make_office(state=office.snapshot(), incarnation=2)
    assert deliver(office, 5, version=1, incarnation=1) is Delivery.STALE
    assert deliver(office, 5, version=0, incarnation=1) is Delivery.FIRST
    assert deliver(office, 6, version=0, incarnation=2) is Delivery.FIRST


def test_an_invalid_episode_is_a_failure_only_where_its_sender_holds_the_ticket() -> None:
    office, hand = make_office(), Hand("a")
    grant(office, hand, 1)
    office.train.restate(hand, listing(outbox=[0]), 1, 1.0)
    assert deliver(office, 0, session="stranger", invalid="no steps") is Delivery.INVALID
    assert hand.held == {0}
    assert deliver(office, 0, session="a", invalid="no steps") is Delivery.INVALID
    assert hand.held == set() and office.train.open[0].failures == 1


# Recovery


def restarted(office: TicketOffice, **options: Any) -> TicketOffice:
    state = json.loads(json.dumps(office.snapshot()))
    order: Literal["arrival", "started"] = office.config.order
    return make_office(order, state=state, incarnation=office.lineage.incarnation + 1, **options)


def test_after_a_restart_what_nobody_claims_is_issued_again() -> None:
    """1. 0-3 consumed, 4 received, 5-7 held; 2. restart; 3. a claims 5; 4. after 5 s the rest is issued."""
    office, hand = make_office(), Hand("a")
    grant(office, hand, 8)
    for number in range(5):
        deliver(office, number)
    office.batches.take()
    office.publish(1)
    office, hand = restarted(office), Hand("a")
    assert office.version == 1 and office.check() == []
    office.train.claim(hand, listing(running=[5]))
    office.train.expire(4.9)
    assert [number for _, number in office.draw(9)] == [8, 9, 10, 11], "only what the gate lets through"
    for _, number in office.draw(4):
        office.train.give(number, hand, 1)
    office.train.expire(5.0)
    assert [number for _, number in office.draw(9)] == [4, 6, 7]
    assert deliver(office, 5, version=0, incarnation=1) is Delivery.FIRST
    assert office.check() == []


def test_a_restart_goes_on_with_the_batch_after_its_version_and_remembers_discards_and_strikes() -> None:
    office, hand = make_office("started"), Hand("a")
    grant(office, hand, 8)
    for number in range(4):
        deliver(office, number)
    office.train.discard(5, "broken")
    office.take_discards()
    office.batches.take()
    office.publish(1)
    office.train.lose(hand, [4])
    office = restarted(office)
    for number in (4, 6, 7):
        deliver(office, number, incarnation=2)
    assert numbers_of(office.batches.take()) == [4, 6, 7]
    assert office.lineage.entries() == ((1, 1), (2, 1))


def test_strikes_survive_a_restart() -> None:
    office, hand = make_office(), Hand("a")
    grant(office, hand, 2)
    office.train.lose(hand, [1])
    office = restarted(office)
    office.train.expire(5.0)
    grant(office, hand, 2)
    office.train.lose(hand, [1])
    assert list(office.train.account.discarded) == ["kills workers"]


def test_an_evaluation_does_not_survive_a_restart() -> None:
    office = make_office()
    office.evaluations.add(0, 3)
    office.draw(3)
    office = restarted(office)
    assert list(office.evaluate.account.discarded) == ["learner restarted"]
    assert office.evaluations.add(0, 2) == range(3, 5) and office.check() == []


def test_a_broken_ledger_is_not_gone_on_with() -> None:
    office = make_office()
    office.draw(3)
    state = office.snapshot()
    state["ledger"]["train"]["outstanding"] = [[0, 2]]
    with pytest.raises(ValueError, match="tickets 2 were issued and are nowhere"):
        make_office(state=state, incarnation=2)


# The law


class Law(RuleBasedStateMachine):
    """Whatever three workers list, send, lose or make up: every ticket is in exactly one place."""

    numbers = st.integers(0, 30)
    sets = st.sets(numbers, max_size=4)
    sequences = st.sampled_from(["train", "evaluate"])

    def __init__(self) -> None:
        super().__init__()
        self.office = make_office(updates=6)
        self.now = 0.0
        self.answers = 0
        self.deal_in()

    def deal_in(self) -> None:
        self.hands: list[dict[SequenceName, Hand]] = [
            {"train": Hand(name), "evaluate": Hand(name)} for name in "abc"
        ]

    @rule(who=st.integers(0, 2), count=st.integers(1, 5))
    def grant(self, who: int, count: int) -> None:
        self.answers += 1
        for name, number in self.office.draw(count):
            self.office.books[name].give(number, self.hands[who][name], self.answers)

    @rule(
        who=st.integers(0, 2),
        name=sequences,
        honest=st.booleans(),
        parts=st.tuples(*[sets] * 5),
        lag=st.integers(0, 2),
    )
    def heartbeat(
        self, who: int, name: SequenceName, honest: bool, parts: tuple[set[int], ...], lag: int
    ) -> None:
        queued, running, outbox, stalled, failed = parts
        hand = self.hands[who][name]
        if honest:
            running |= hand.held - queued - outbox - failed
        said = listing(queued, running, outbox, stalled, dict.fromkeys(failed, "it broke"))
        self.office.books[name].restate(hand, said, self.answers - lag, self.now)

    @rule(who=st.integers(0, 2), name=sequences, queued=sets, running=sets)
    def hello(self, who: int, name: SequenceName, queued: set[int], running: set[int]) -> None:
        self.office.books[name].claim(self.hands[who][name], listing(queued, running))

    @rule(
        name=sequences,
        number=numbers,
        version=st.integers(0, 3),
        who=st.sampled_from("abc"),
        invalid=st.sampled_from(["", "", "no steps"]),
    )
    def episode(self, name: SequenceName, number: int, version: int, who: str, invalid: str) -> None:
        deliver(self.office, number, version, self.office.lineage.incarnation, who, name, invalid)

    @rule(who=st.integers(0, 2), name=sequences, running=sets)
    def lose(self, who: int, name: SequenceName, running: set[int]) -> None:
        self.office.books[name].lose(self.hands[who][name], running)

    @rule(who=st.integers(0, 2), name=sequences, outbox=sets)
    def leave(self, who: int, name: SequenceName, outbox: set[int]) -> None:
        self.office.books[name].leave(self.hands[who][name], outbox, self.now + 5.0)

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for name, book in self.office.books.items():
            book.expire(self.now)
            for hands in self.hands:
                book.unstick(hands[name], self.now)

    @rule(episodes=st.integers(1, 5))
    @precondition(lambda self: len(self.office.evaluations.requests) < 3)
    def evaluate(self, episodes: int) -> None:
        self.office.evaluations.add(self.office.version, episodes)

    @rule()
    def train(self) -> None:
        self.office.take_discards()
        self.office.evaluations.take()
        batch = self.office.batches.take()
        if batch is not None:
            assert len(batch) == BATCH
            self.office.publish(self.office.version + 1)

    @rule()
    def restart(self) -> None:
        self.office = restarted(self.office, updates=6)
        self.office.train.unclaimed = {number: self.now + 5.0 for number in self.office.train.unclaimed}
        self.deal_in()

    @invariant()
    def every_ticket_is_in_one_place(self) -> None:
        assert self.office.check() == []
        assert self.office.room() >= 0
        for name, book in self.office.books.items():
            for hands in self.hands:
                assert all(hands[name] in book.open[number].holders for number in hands[name].held)


TestLaw = Law.TestCase
TestLaw.settings = settings(max_examples=80, stateful_step_count=40)
