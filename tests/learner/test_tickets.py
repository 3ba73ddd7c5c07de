"""The ticket office and its books: gate, order, terms, deliveries, limits, recovery, and their law."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from learner.config import RunConfig
from learner.hands import Hand, Listing
from learner.ledger import Delivery
from learner.tickets import TicketOffice
from protocol.messages import Episode, Failure, Grant, Version
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
        assert numbers_of(office.take_batch()) == list(range(4 * update, 4 * update + 4))
        office.publish(update + 1)
        assert len(grant(office, hand, 100)) == (4 if update == 0 else 0)
    assert office.train.account.issued == 12 and not office.train.account.outstanding


def test_in_started_order_the_gate_does_not_replace_discards() -> None:
    office, hand = make_office("started"), Hand("a")
    grant(office, hand, 100)
    office.train.discard(3, "broken")
    assert grant(office, hand, 100) == []


# Batches


def test_in_arrival_order_the_first_received_make_the_batch() -> None:
    office, hand = make_office(), Hand("a")
    grant(office, hand, 8)
    for number in (7, 2, 5):
        deliver(office, number)
    assert office.take_batch() is None
    deliver(office, 0)
    assert numbers_of(office.take_batch()) == [0, 2, 5, 7]
    assert office.take_batch() is None


def test_in_started_order_a_batch_waits_for_each_of_its_tickets() -> None:
    """1. all of batch 1 arrives; 2. ticket 0 is the last of batch 0; 3. both close, in order."""
    office, hand = make_office("started"), Hand("a")
    grant(office, hand, 8)
    for number in (5, 4, 7, 6, 3, 1, 2):
        deliver(office, number)
    assert office.take_batch() is None
    deliver(office, 0)
    assert numbers_of(office.take_batch()) == [0, 1, 2, 3]
    assert numbers_of(office.take_batch()) == [4, 5, 6, 7]


def test_in_started_order_a_discard_closes_a_smaller_batch() -> None:
    office, hand = make_office("started"), Hand("a")
    grant(office, hand, 8)
    for number in (0, 1, 3):
        deliver(office, number)
    office.train.discard(2, "broken")
    assert office.take_discards() == ["ticket train:2 is discarded: broken"]
    assert numbers_of(office.take_batch()) == [0, 1, 3]
    office.publish(1)
    assert office.check() == []


def test_a_batch_is_consumed_by_its_version() -> None:
    office, hand = make_office(), Hand("a")
    grant(office, hand, 8)
    with pytest.raises(ValueError, match="version 1 cannot follow 0"):
        office.publish(1)
    for number in range(4):
        deliver(office, number)
    office.take_batch()
    assert len(office.train.account.consumed) == 0
    with pytest.raises(ValueError, match="version 2 cannot follow 0"):
        office.publish(2)
    office.publish(1)
    assert office.train.account.consumed.to_ranges() == ((0, 4),)


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
    office.take_batch()
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
    office.take_batch()
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
        office.take_batch()
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


# Heartbeats


def test_a_grant_that_a_worker_saw_and_does_not_list_is_missing() -> None:
    """1. answer 1 grants 0, answer 2 grants 1; 2. a heartbeat that saw answer 1 lists nothing."""
    office, hand = make_office(), Hand("a")
    grant(office, hand, 1, answer=1)
    grant(office, hand, 1, answer=2)
    office.train.restate(hand, listing(), 0, 1.0)
    assert hand.held == {0, 1}, "both are on their way"
    office.train.restate(hand, listing(), 1, 1.0)
    assert hand.held == {1} and office.draw(1) == [("train", 0)]


def test_a_revoked_ticket_is_issued_again_once_it_is_no_longer_listed() -> None:
    """1. 1 is revoked; 2. a crossing heartbeat still lists it; 3. the next does not: lowest first."""
    office, hand = make_office(), Hand("a")
    grant(office, hand, 3)
    office.train.restate(hand, listing(queued=[0, 1, 2]), 1, 1.0)
    office.train.revoke(1, hand)
    office.train.restate(hand, listing(queued=[0, 1, 2]), 1, 1.5)
    assert hand.drops(repeat=True) == {1} and ("train", 1) not in office.draw(9)
    office.train.restate(hand, listing(queued=[0, 2]), 2, 2.0)
    assert office.draw(1) == [("train", 1)]


@pytest.mark.parametrize(
    ("queued", "running", "outbox", "kept"),
    [([0], [], [], False), ([], [0], [], True), ([], [], [0], True)],
)
def test_what_another_holds_is_kept_only_where_it_was_begun(
    queued: list[int], running: list[int], outbox: list[int], kept: bool
) -> None:
    """1. a is lost with 0; 2. b gets it, in its queue; 3. a is back and lists it."""
    office, a, b = make_office(), Hand("a"), Hand("b")
    grant(office, a, 1)
    office.train.lose(a, [])
    grant(office, b, 1)
    office.train.restate(b, listing(queued=[0]), 1, 1.0)
    office.train.claim(a, listing(queued, running, outbox))
    assert (0 in a.held) is kept
    assert (0 in b.held) is not kept, "who has it only queued gives way"
    assert a.drops(repeat=True) == (set() if kept else {0})
    assert office.check() == []


def test_a_heartbeat_claims_what_nobody_has() -> None:
    office, hand = make_office(), Hand("a")
    office.draw(2)
    office.train.restate(hand, listing(running=[0], queued=[1]), 1, 1.0)
    assert hand.held == {0, 1} and ("train", 0) not in office.draw(9)


def test_what_a_worker_must_drop_is_not_granted_to_it_before_it_has() -> None:
    """1. a is lost, b gets 0; 2. a is back with 0 queued, must drop it; 3. b is lost; 4. a has dropped it."""
    office, a, b = make_office(), Hand("a"), Hand("b")
    grant(office, a, 1)
    office.train.lose(a, [])
    grant(office, b, 1)
    office.train.claim(a, listing(queued=[0]))
    office.train.lose(b, [])
    assert ("train", 0) not in office.draw(1)
    office.train.restate(a, listing(), 1, 1.0)
    assert office.draw(1) == [("train", 0)]


def test_received_episodes_are_dropped_before_the_next_heartbeat_lists_them() -> None:
    office, hand = make_office(), Hand("a")
    grant(office, hand, 2)
    deliver(office, 0)
    assert hand.changed and hand.drops(repeat=False) == {0}
    assert not hand.changed and hand.drops(repeat=False) == set(), "told once between two heartbeats"
    assert hand.drops(repeat=True) == {0}, "and with each heartbeat's answer"


# Limits


def fail(office: TicketOffice, hand: Hand, number: int, reason: str) -> None:
    """Let a worker report a failure, see the drop, and get the ticket again."""
    office.train.restate(hand, listing(failures={number: reason}), 99, 1.0)
    office.train.restate(hand, listing(failures={number: reason}), 99, 1.1)
    office.train.restate(hand, listing(), 99, 1.2)
    if ("train", number) in office.draw(1):
        office.train.give(number, hand, 99)


def test_a_failure_is_issued_again_twice_and_counted_once_each() -> None:
    office, hand = make_office(), Hand("a")
    grant(office, hand, 1)
    fail(office, hand, 0, "ValueError: one")
    fail(office, hand, 0, "ValueError: two")
    assert hand.held == {0} and not office.train.account.discarded
    fail(office, hand, 0, "ValueError: three")
    assert {r: n.to_ranges() for r, n in office.train.account.discarded.items()} == {
        "ValueError: three": ((0, 1),)
    }


def test_a_ticket_that_was_running_on_lost_workers_kills_them() -> None:
    """1. a, with one slot, is lost with 0 running and 1 queued; 2. so is b: 0 is discarded, 1 is not."""
    office = make_office()
    for name in ("a", "b"):
        hand = Hand(name)
        grant(office, hand, 2)
        office.train.restate(hand, listing(running=[0], queued=[1]), 1, 1.0)
        office.train.lose(hand, hand.could_be_running(slots=1))
    assert list(office.train.account.discarded) == ["kills workers"]
    assert office.draw(1) == [("train", 1)]


def test_a_worker_that_dies_before_its_heartbeat_may_have_been_running_what_it_was_granted() -> None:
    hand = Hand("a", held={3, 4, 5, 6}, running={3, 9}, outbox={4})
    assert hand.could_be_running(slots=2) == [3, 5]


def test_a_stuck_ticket_goes_to_a_second_and_a_third_worker_then_it_is_discarded() -> None:
    """a stalls at 0 s, b at 20 s, c at 40 s; each is stuck 10 s later."""
    office = make_office()
    holders = [Hand("a"), Hand("b"), Hand("c")]
    for place, hand in enumerate(holders):
        office.train.give(0, hand, 1) if place else grant(office, hand, 1)
        office.train.restate(hand, listing(running=[0], stalled=[0]), 1, 20.0 * place)
        assert not office.train.unstick(hand, 20.0 * place + 9.0)
        assert office.train.again == set()
        for other in holders[: place + 1]:
            office.train.unstick(other, 20.0 * place + 10.0)
        assert office.train.again == ({0} if place < 2 else set())
    assert list(office.train.account.discarded) == ["stuck"]
    assert all(hand.held == set() for hand in holders)


def test_progress_anywhere_means_not_stuck() -> None:
    """1. a stalls; 2. a moves again at 8 s; 3. a stalls, b plays its copy: no third is needed."""
    office, a, b = make_office(), Hand("a"), Hand("b")
    grant(office, a, 1)
    office.train.restate(a, listing(running=[0], stalled=[0]), 1, 0.0)
    office.train.restate(a, listing(running=[0]), 1, 8.0)
    office.train.restate(a, listing(running=[0], stalled=[0]), 1, 9.0)
    assert not office.train.unstick(a, 12.0)
    assert office.train.unstick(a, 19.0)
    office.train.give(0, b, 1)
    office.train.restate(b, listing(running=[0]), 1, 20.0)
    assert not office.train.unstick(a, 40.0)


def test_a_second_copy_that_is_given_back_is_wanted_again() -> None:
    office, a, b = make_office(), Hand("a"), Hand("b")
    grant(office, a, 1)
    office.train.restate(a, listing(running=[0], stalled=[0]), 1, 0.0)
    office.train.unstick(a, 10.0)
    office.train.give(0, b, 1)
    office.train.lose(b, [])
    assert office.train.again == {0}


def test_an_episode_that_never_arrives_is_stuck_too() -> None:
    office, hand = make_office(), Hand("a")
    grant(office, hand, 1)
    office.train.restate(hand, listing(outbox=[0]), 1, 0.0)
    assert office.train.unstick(hand, 10.0)


@pytest.mark.parametrize("limit", ["failures", "losses", "stuck"])
def test_in_exact_mode_a_limit_stops_the_run_and_discards_nothing(limit: str) -> None:
    office = make_office("started", exact=True)
    hand = Hand("a")
    grant(office, hand, 1)
    if limit == "failures":
        for reason in ("one", "two", "three"):
            assert office.train.stopped == ""
            fail(office, hand, 0, reason)
    elif limit == "losses":
        office.train.lose(hand, [0])
        grant(office, hand, 1)
        office.train.lose(hand, [0])
    else:
        office.train.restate(hand, listing(running=[0], stalled=[0]), 1, 0.0)
        for now in (10.0, 20.0, 30.0):
            assert office.train.stopped == ""
            office.train.unstick(hand, now)
    assert office.train.stopped.startswith("exact mode cannot leave out ticket train:0: ")
    assert not office.train.account.discarded and office.check() == []


# Evaluation


def test_evaluate_tickets_stand_outside_the_gate_under_their_cap_and_pin_their_version() -> None:
    """1. the gate is shut; 2. 6 episodes are asked for, 4 may be out; 3. one arrives, the next may go."""
    office, hand = make_office(evaluation_cap=4), Hand("a")
    grant(office, hand, 100)
    assert office.request_evaluation(0, 6) == range(6)
    assert office.draw(100) == [("evaluate", number) for number in range(4)]
    for number in range(4):
        office.evaluate.give(number, hand, 1)
    assert office.draw(100) == []
    assert deliver(office, 2, sequence="evaluate") is Delivery.FIRST
    assert office.draw(100) == [("evaluate", 4)]
    assert office.grants([("evaluate", 4)]) == (Grant("evaluate", 4, 5, 0, exact=True),)
    for number in range(4):
        deliver(office, number)
    office.take_batch()
    office.publish(1)
    assert office.pinned_versions() == {0, 1}
    assert deliver(office, 1, version=1, sequence="evaluate") is Delivery.STALE


def test_an_evaluation_is_returned_whole_and_by_number() -> None:
    office, hand = make_office(updates=1, evaluation_cap=1), Hand("a")
    grant(office, Hand("a"), 4)
    assert office.request_evaluation(0, 3) == range(3) and office.request_evaluation(0, 2) == range(3, 5)
    drawn = office.draw(100)
    assert len(drawn) == 5, "once no train ticket is to come, nothing holds them back"
    for _, number in drawn:
        office.evaluate.give(number, hand, 1)
    deliver(office, 2, sequence="evaluate")
    deliver(office, 0, sequence="evaluate")
    assert office.take_evaluation() is None
    office.evaluate.discard(1, "broken")
    office.take_discards()
    evaluation = office.take_evaluation()
    assert evaluation is not None and numbers_of(evaluation.episodes) == [0, 2]
    assert (evaluation.start, evaluation.stop, evaluation.version) == (0, 3, 0)
    assert office.take_evaluation() is None
    assert office.evaluate.account.consumed.to_ranges() == ((0, 1), (2, 3)) and office.check() == []


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
    office.take_batch()
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
    office.take_batch()
    office.publish(1)
    office.train.lose(hand, [4])
    office = restarted(office)
    for number in (4, 6, 7):
        deliver(office, number, incarnation=2)
    assert numbers_of(office.take_batch()) == [4, 6, 7]
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
    office.request_evaluation(0, 3)
    office.draw(3)
    office = restarted(office)
    assert list(office.evaluate.account.discarded) == ["learner restarted"]
    assert office.request_evaluation(0, 2) == range(3, 5) and office.check() == []


def test_a_broken_ledger_is_not_gone_on_with() -> None:
    office = make_office()
    office.draw(3)
    state = office.snapshot()
    state["ledger"]["train"]["outstanding"] = [[0, 2]]
    with pytest.raises(ValueError, match="tickets 2 were issued and are nowhere"):
        make_office(state=state, incarnation=2)


def test_a_departed_workers_outbox_may_still_arrive() -> None:
    """1. a leaves, 0 just pushed, 1 running; 2. 1 is issued again at once, 0 if it does not arrive."""
    office, hand = make_office(), Hand("a")
    grant(office, hand, 2)
    office.train.restate(hand, listing(running=[1], outbox=[0]), 1, 0.0)
    office.train.leave(hand, outbox=[0], until=5.0)
    assert office.draw(1) == [("train", 1)] and office.train.unclaimed == {0: 5.0}
    office.train.expire(5.0)
    assert office.draw(2) == [("train", 0), ("train", 1)]


def test_a_departed_workers_outbox_does_not_concern_another_holder() -> None:
    office, a, b = make_office(), Hand("a"), Hand("b")
    grant(office, a, 1)
    office.train.claim(b, listing(running=[0]))
    office.train.leave(a, outbox=[0], until=5.0)
    assert not office.train.unclaimed and b.held == {0} and office.check() == []


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
    @precondition(lambda self: len(self.office.requests) < 3)
    def evaluate(self, episodes: int) -> None:
        self.office.request_evaluation(self.office.version, episodes)

    @rule()
    def train(self) -> None:
        self.office.take_discards()
        self.office.take_evaluation()
        batch = self.office.take_batch()
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
