"""Where outstanding tickets are: what heartbeats say of them, how workers go, and what a ticket may cost."""

from __future__ import annotations

import pytest

from learner.hands import Hand
from learner.tickets import TicketOffice
from tests.learner.offices import deliver, grant, listing, make_office

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


# Departures


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
