"""What workers are dealt and answered, and when: idle slots first, and together where nobody waits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from learner.dealing import shares
from learner.rounds import COALESCE_SECONDS, DEAL_SECONDS
from learner.sessions import Session
from protocol.messages import Hello
from tests.learner.fleets import Fleet, answers, granted

# Answers


def test_an_answer_names_exactly_the_listed_tickets_that_the_worker_may_not_keep() -> None:
    """1. a holds 0-3; 2. 0 arrives; 3. a lists 0-3, and 7 and 50 that it never got from this learner."""
    fleet = Fleet()
    fleet.join(slots=2)
    fleet.episode(0)
    fleet.tick()
    fleet.beat(answer=1, outbox={0}, running={1, 2}, queued={3, 7, 50})
    assert answers(fleet.tick())["a"].drop == {"train": ((0, 1), (7, 8), (50, 51))}
    fleet.beat(answer=2, running={1, 2}, queued={3})
    assert answers(fleet.tick())["a"].drop == {}


def test_under_load_the_events_of_a_moment_share_one_look_at_all_workers() -> None:
    fleet = Fleet()
    fleet.join()
    fleet.now += DEAL_SECONDS
    fleet.beat(answer=1, running={0, 1}, queued={2, 3})
    assert answers(fleet.registry.tick(fleet.now, True))
    fleet.beat(answer=2, running={0, 1}, queued={2, 3})
    assert not answers(fleet.registry.tick(fleet.now + DEAL_SECONDS / 2, True))
    assert answers(fleet.registry.tick(fleet.now + DEAL_SECONDS, True))


def test_what_nobody_waits_for_shares_an_answer() -> None:
    """1. a's episodes arrive one by one, b's heartbeats between; 2. one answer drops them and tops a up."""
    fleet = Fleet(batch=100)
    fleet.join(slots=10)
    fleet.beat(answer=1, running=set(range(10)), queued=set(range(10, 20)))
    fleet.now += COALESCE_SECONDS
    fleet.tick()
    fleet.join("b", slots=1)
    fleet.now += COALESCE_SECONDS
    fleet.tick()
    for number in (0, 1, 2, 3):
        fleet.episode(number)
        fleet.beat("b", answer=1, running={20}, queued={21})
        assert answers(fleet.tick()).keys() == {"b"}
    fleet.now += COALESCE_SECONDS
    answer = answers(fleet.tick())["a"]
    assert answer.drop == {"train": ((0, 4),)} and granted(answer) == [22, 23, 24, 25]
    fleet.now += COALESCE_SECONDS
    assert fleet.tick() == []


def test_received_episodes_are_dropped_unasked_where_there_is_nothing_to_grant() -> None:
    fleet = Fleet(batch=2, max_lag=0)
    fleet.join(slots=2)
    fleet.beat(answer=1, outbox={0}, running={1})
    fleet.tick()
    fleet.episode(0)
    fleet.now += COALESCE_SECONDS
    assert answers(fleet.tick())["a"].drop == {"train": ((0, 1),)}


def test_nobody_idles_for_a_heartbeat_when_the_gate_opens() -> None:
    """1. the gate is shut, all slots idle; 2. an update ends: granted in the same turn."""
    fleet = Fleet(batch=2, max_lag=0)
    fleet.join(slots=2)
    fleet.episode(0)
    fleet.episode(1)
    fleet.tick()
    fleet.update()
    assert granted(answers(fleet.tick())["a"]) == [2, 3]


# Dealing


def test_idle_slots_everywhere_come_before_any_queue() -> None:
    """Six tickets for two workers of two slots that ask at once: two slots each, then one queued each."""
    fleet = Fleet(batch=3, max_lag=1)
    for name in "ab":
        fleet.hello(name)
        fleet.beat(name)
    dealt = answers(fleet.tick())
    assert (granted(dealt["a"]), granted(dealt["b"])) == ([0, 1, 4], [2, 3, 5])


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=6), st.integers(0, 40))
def test_shares_level_the_load_per_slot(workers: list[tuple[int, int]], count: int) -> None:
    sessions = [Session(Hello(str(place), "", 1, slots, ""), 0.0) for place, (slots, _) in enumerate(workers)]
    for session, (_, load) in zip(sessions, workers, strict=True):
        session.hands["train"].held = set(range(load))
    dealt = shares(sessions, 2, count)
    spaces = [max(0, 2 * session.slots - session.load) for session in sessions]
    assert sum(dealt) == min(count, sum(spaces))
    for given_to, gets in zip(sessions, dealt, strict=True):
        for other, others in zip(sessions, dealt, strict=True):
            if gets and others < 2 * other.slots - other.load:
                last = (given_to.load + gets - 1) / given_to.slots
                assert last <= (other.load + others) / other.slots, "another had been emptier"


def test_queued_tickets_move_to_an_idle_slot_without_being_played_twice() -> None:
    """1. a has all 4 tickets, two of them queued; 2. b is idle: a must drop the last; 3. a has: b gets it."""
    fleet = Fleet(batch=2, max_lag=1)
    fleet.join("a", slots=2)
    fleet.beat("a", answer=1, running={0, 1}, queued={2, 3})
    fleet.tick()
    fleet.hello("b", slots=1)
    fleet.beat("b")
    assert granted(answers(fleet.tick())["b"]) == []
    fleet.now += COALESCE_SECONDS
    assert answers(fleet.tick())["a"].drop == {"train": ((3, 4),)}
    fleet.beat("a", answer=2, running={0, 1}, queued={2, 3})
    fleet.beat("b", answer=1)
    crossed = answers(fleet.tick())
    assert granted(crossed["b"]) == [] and crossed["a"].drop == {"train": ((3, 4),)}, "a still has it"
    fleet.beat("a", answer=3, running={0, 1}, queued={2})
    assert granted(answers(fleet.tick())["b"]) == [3]


def test_a_worker_that_cannot_be_reached_is_granted_nothing_until_it_is_heard() -> None:
    """1. the gate opens, the answer to a bounces; 2. no more grants; 3. a's heartbeat: granted again."""
    fleet = Fleet(batch=1, max_lag=0)
    fleet.join(slots=1)
    fleet.episode(0)
    fleet.tick()
    fleet.update()
    assert granted(answers(fleet.tick())["a"]) == [1]
    fleet.registry.membership.undeliverable("a")
    fleet.episode(1, session="b", version=1)
    fleet.update()
    fleet.now += COALESCE_SECONDS
    assert all(not answer.grants for answer in answers(fleet.tick()).values())
    fleet.beat(answer=1)
    assert granted(answers(fleet.tick())["a"]) == [2]


def test_a_stuck_ticket_goes_to_another_worker_and_its_holder_gets_no_more_until_it_moves() -> None:
    """1. a stalls with 0 for 10 s; 2. b gets 0 too, and what a had queued; 3. a moves: granted again."""
    fleet = Fleet(batch=8, max_lag=0)
    fleet.join("a", slots=1)
    fleet.beat("a", answer=1, running={0}, stalled={0}, queued={1}, steps=5)
    fleet.tick()
    fleet.now += 10.0
    fleet.beat("a", answer=2, running={0}, stalled={0}, queued={1}, steps=5)
    assert answers(fleet.tick())["a"].drop == {"train": ((1, 2),)}
    fleet.beat("a", answer=3, running={0}, stalled={0}, steps=5)
    fleet.hello("b", slots=2)
    fleet.beat("b")
    dealt = answers(fleet.tick())
    assert granted(dealt["b"]) == [0, 1, 2, 3] and granted(dealt["a"]) == []
    fleet.beat("a", answer=4, running={0}, steps=6)
    assert granted(answers(fleet.tick())["a"]) == [4]
