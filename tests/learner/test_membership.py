"""Who takes part: workers join, are heard, fall silent, leave, come back or are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from learner.instructions import MOST_CHARACTERS, Send
from learner.ledger import Delivery
from learner.rounds import COALESCE_SECONDS
from learner.sessions import InvalidMove, Session, SessionState
from protocol.messages import (
    Built,
    Failure,
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    HelloAgain,
    Holdings,
    SnapshotRequest,
)
from protocol.tickets import Ticket
from tests.learner.fleets import BUILT, LIVENESS, SPACES, Fleet, answers, granted, refusal

# Joining


def test_a_worker_is_welcomed_and_granted_once_it_is_built() -> None:
    """1. hello: welcome; 2. it builds: an answer, no grants; 3. built: a ticket per slot and one queued."""
    fleet = Fleet()
    fleet.hello()
    assert fleet.tick() == [Send("a", fleet.welcome)]
    fleet.beat(state="building", built=None)
    assert granted(answers(fleet.tick())["a"]) == []
    fleet.beat(state="ready", built=None)
    assert granted(answers(fleet.tick())["a"]) == [], "ready means built"
    fleet.beat()
    answer = answers(fleet.tick())["a"]
    assert (answer.incarnation, answer.number, answer.version) == (1, 3, 0)
    assert answer.grants == (Grant("train", 0, 4, 0),)
    assert fleet.state() == "ready"


def test_a_hello_said_twice_does_no_harm() -> None:
    fleet = Fleet()
    fleet.join()
    fleet.hello(holdings=Holdings(running={"train": ((0, 2),)}, queued={"train": ((2, 3),)}))
    assert fleet.tick() == [Send("a", fleet.welcome)]
    fleet.beat(answer=1, running={0, 1}, queued={2, 3})
    answer = answers(fleet.tick())["a"]
    assert answer.drop == {} and answer.grants == () and answer.number == 2


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"run": "run-0"}, ("run-0", "run-1")),
        ({"software": "2.0.0"}, ("2.0.0", "1.4.0")),
        ({"slots": 0}, ("0 slots", "at least 1")),
        ({"slots": 2**60}, (f"{2**60} slots", "100000")),
        ({"host": "h" * 101}, ("100 characters",)),
    ],
)
def test_a_hello_that_does_not_fit_is_refused_with_both_values(
    fields: dict[str, Any], names: tuple[str, ...]
) -> None:
    fleet = Fleet()
    fleet.hello(**fields)
    reason = refusal(fleet.tick())
    assert all(name in reason for name in names)
    fleet.beat()
    assert refusal(fleet.tick()) == reason, "told again to who goes on"
    assert fleet.state() == "refused"


def test_other_spaces_are_refused_with_both_values() -> None:
    fleet = Fleet()
    fleet.hello(holdings=Holdings(running={"train": ((0, 1),)}))
    fleet.tick()
    fleet.beat(built=replace(BUILT, spaces=replace(SPACES, actions=3, observation_size=5)))
    assert refusal(fleet.tick()) == (
        "the worker's environment has observation_size 5, the run's 4; actions 3, the run's 2"
    )


def test_in_exact_mode_other_bits_are_refused_and_the_reference_survives_a_restart() -> None:
    """1. a is the reference; 2. b differs, refused; 3. restart; 4. b comes first, and is refused again."""
    fleet = Fleet(exact=True)
    fleet.join("a")
    for _ in range(2):
        fleet.hello("b")
        fleet.tick()
        fleet.beat("b", built=Built(SPACES, "probe-2", "Haswell"))
        reason = refusal([i for i in fleet.tick() if isinstance(i, Send) and i.session == "b"])
        assert all(name in reason for name in ("Haswell", "probe-2", "Zen 4", "probe-1"))
        state = json.loads(json.dumps(fleet.registry.snapshot()))
        fleet = Fleet(exact=True, incarnation=fleet.welcome.incarnation + 1, state=state)


def test_without_exact_mode_other_bits_are_noted() -> None:
    fleet = Fleet()
    fleet.join("a", slots=1)
    fleet.hello("b")
    fleet.beat("b", built=Built(SPACES, "probe-2", "Haswell"))
    assert granted(answers(fleet.tick())["b"])
    assert any("Haswell" in line and "Zen 4" in line for line in fleet.log)


# Heartbeats


def test_a_heartbeat_of_a_stranger_is_told_to_say_hello() -> None:
    fleet = Fleet()
    fleet.beat("x")
    assert fleet.tick() == [Send("x", HelloAgain())]
    fleet.registry.snapshot_request(SnapshotRequest("y"), fleet.now)
    assert fleet.tick() == [Send("y", HelloAgain())]


def test_a_grant_that_was_seen_and_is_not_listed_is_granted_again() -> None:
    """1. answer 1 grants 0-3; 2. a heartbeat that crosses it lists nothing; 3. one after it lists 0 and 1."""
    fleet = Fleet()
    assert granted(fleet.join(slots=2)) == [0, 1, 2, 3]
    fleet.beat(answer=0)
    assert granted(answers(fleet.tick())["a"]) == []
    fleet.beat(answer=2, running={0, 1})
    assert granted(answers(fleet.tick())["a"]) == [2, 3]


def test_an_answer_of_another_incarnation_acknowledges_nothing() -> None:
    fleet = Fleet(incarnation=3)
    fleet.hello(slots=1)
    fleet.beat(incarnation=2, answer=99)
    assert granted(answers(fleet.tick())["a"]) == [0, 1]
    fleet.beat(incarnation=2, answer=99)
    assert granted(answers(fleet.tick())["a"]) == [], "0 and 1 are on their way"
    fleet.beat(incarnation=3, answer=2)
    assert granted(answers(fleet.tick())["a"]) == [0, 1]


def test_a_worker_that_names_a_later_incarnation_is_refused_and_does_not_end_the_run() -> None:
    fleet = Fleet(incarnation=3)
    fleet.join("b")
    fleet.hello()
    fleet.tick()
    fleet.beat(incarnation=2**40)
    reason = refusal(fleet.tick())
    assert f"incarnation {2**40}" in reason and "this one is 3" in reason
    fleet.beat("b", incarnation=3, answer=1, running={0, 1}, queued={2, 3})
    fleet.episode(0, "b")
    assert granted(answers(fleet.tick())["b"]) == [4]


def test_claims_beyond_all_tickets_are_refused_before_they_are_looked_at() -> None:
    """A hello, a heartbeat and a goodbye: each claims 100,000 tickets in a few bytes."""
    claims = Holdings(running={"train": ((0, 50_000),)}, stalled={"evaluate": ((0, 50_000),)})
    fleet = Fleet()
    fleet.hello("a", holdings=claims)
    assert "claims 100,000 tickets" in refusal(fleet.tick())
    fleet.join("b")
    fleet.registry.membership.heartbeat(Heartbeat("b", 99, 1, 1, "ready", claims), fleet.now)
    assert "claims 100,000 tickets" in refusal(fleet.tick())
    fleet.join("c")
    fleet.registry.membership.goodbye(Goodbye("c", "bye", claims), fleet.now)
    assert "claims 100,000 tickets" in refusal(fleet.tick())
    assert fleet.registry.office.check() == []


def test_a_hello_begins_the_count_of_heartbeats_anew() -> None:
    fleet = Fleet()
    fleet.join()
    fleet.registry.membership.heartbeat(Heartbeat("a", 2**62, 1, 1, "ready", Holdings()), fleet.now)
    fleet.tick()
    fleet.hello()
    fleet.tick()
    fleet.beat(answer=2)
    assert answers(fleet.tick())["a"].grants, "a smaller number counts again"


def test_what_strangers_write_cannot_forge_a_line_of_the_log_or_fill_it() -> None:
    forged = "\n2026-01-01 00:00:00 root ERROR: all is lost\x1b[31m"
    fleet = Fleet()
    for _ in range(5):
        fleet.hello("a", host=f"h{forged}")
    fleet.hello("b", run=forged * 2000)
    fleet.beat("a", failures=(Failure(Ticket("train", 0), forged * 2000),))
    fleet.tick()
    fleet.registry.membership.goodbye(Goodbye("a", forged), fleet.now)
    fleet.tick()
    assert all(line.isprintable() and len(line) <= MOST_CHARACTERS for line in fleet.log)
    assert sum("joins" in line for line in fleet.log) == 1
    (hosts,) = {worker.host.isprintable() for worker in fleet.registry.status(fleet.now).workers}
    assert hosts


def test_an_old_heartbeat_changes_nothing() -> None:
    fleet = Fleet()
    fleet.join(slots=1)
    fleet.beat(answer=1, running={0}, queued={1})
    fleet.tick()
    fleet.beats -= 2
    fleet.beat(answer=1)
    assert fleet.tick() == []


def test_a_worker_that_breaks_the_protocol_is_refused_and_its_tickets_are_issued_again() -> None:
    """1. a is ready; 2. it claims to build again; 3. b gets its ticket. Or: it saw an answer never sent."""
    for break_it in ({"state": "building"}, {"answer": 9}):
        fleet = Fleet(batch=1, max_lag=0)
        fleet.join("a", slots=1)
        fleet.beat("a", running={0}, **{"answer": 1, **break_it})  # type: ignore[arg-type]  # plain values
        assert refusal(fleet.tick())
        assert granted(fleet.join("b", slots=1)) == [0]


# Lives


def test_a_silent_worker_is_lost_only_once_the_control_socket_was_read_empty() -> None:
    """1. the learner stood still for a minute, a's heartbeat is unread: nobody is lost; 2. silence."""
    fleet = Fleet()
    fleet.join()
    fleet.now += 60.0
    fleet.tick(drained=False)
    assert fleet.state() == "ready"
    fleet.beat(answer=1, running={0, 1}, queued={2, 3})
    fleet.tick()
    assert fleet.state() == "ready"
    fleet.now += LIVENESS + 0.1
    fleet.tick()
    assert fleet.state() == "lost"


def test_a_lost_workers_tickets_are_issued_again_and_it_may_come_back() -> None:
    """1. a is lost, b gets 0-3; 2. a: hello again; 3. it keeps 0, which it runs and b only has queued."""
    fleet = Fleet(batch=2)
    fleet.join("a", slots=2)
    fleet.beat("a", answer=1, running={0}, queued={1, 2, 3})
    fleet.now += LIVENESS + 0.1
    assert fleet.state() == "ready"
    fleet.tick()
    assert granted(fleet.join("b", slots=2)) == [0, 1, 2, 3]
    fleet.beat("b", answer=1, running={2, 3}, queued={0, 1})
    fleet.tick()
    fleet.beat("a", answer=1, running={0}, queued={1})
    assert fleet.tick() == [Send("a", HelloAgain())]
    fleet.hello("a", holdings=Holdings(running={"train": ((0, 1),)}, queued={"train": ((1, 2),)}))
    assert fleet.state("a") == "building"
    fleet.beat("a", answer=1, running={0}, queued={1})
    sent = answers(fleet.tick())
    assert sent["a"].drop == {"train": ((1, 2),)} and sent["a"].number > 1
    fleet.now += COALESCE_SECONDS
    fleet.beat("b", answer=1, running={2, 3}, queued={0, 1})
    assert answers(fleet.tick())["b"].drop == {"train": ((0, 2),)}, "1 moves to a's idle slot"
    assert fleet.registry.office.check() == []


def test_one_process_counts_one_loss_against_its_ticket() -> None:
    """1. a is lost with 0 running; 2. it is back; 3. lost again: still one loss; 4. b is lost with 0: two."""
    fleet = Fleet(batch=1, max_lag=0)
    fleet.hello("a", slots=1)
    for _ in range(2):
        fleet.hello("a", slots=1, holdings=Holdings(running={"train": ((0, 1),)}))
        fleet.beat("a", running={0})
        fleet.tick()
        fleet.beat("a", running={0})
        fleet.tick()
        fleet.now += LIVENESS + 0.1
        fleet.tick()
    assert fleet.registry.office.train.open[0].losses == 1
    fleet.join("b", slots=1)
    fleet.now += LIVENESS + 0.1
    fleet.tick()
    fleet.tick()
    assert "ticket train:0 is discarded: kills workers" in fleet.log


def test_a_worker_that_leaves_returns_its_tickets() -> None:
    """1. a leaves with 0 pushed and 1 running; 2. b gets 1 at once; 3. 0 arrives after all."""
    fleet = Fleet(batch=2, max_lag=0)
    fleet.join("a", slots=2)
    fleet.beat("a", answer=1, outbox={0}, running={1})
    fleet.registry.membership.goodbye(
        Goodbye("a", "SIGTERM", Holdings(outbox={"train": ((0, 1),)})), fleet.now
    )
    assert granted(fleet.join("b", slots=2)) == [1]
    assert fleet.episode(0, session="a") is Delivery.FIRST
    assert fleet.state("a") == "left"
    fleet.hello("a")
    assert "said goodbye" in refusal([i for i in fleet.tick() if isinstance(i, Send) and i.session == "a"])


def test_an_invalid_move_tells_the_workers_history() -> None:
    session = Session(Hello("a", "gpu-box", 42, 1, "1.0"), 1.0)
    session.move(SessionState.READY, "heartbeat", 2.0)
    session.move(SessionState.LEFT, "SIGTERM", 3.0)
    with pytest.raises(
        InvalidMove, match=r"worker gpu-box:42 cannot go from LEFT to READY .*ready \(heartbeat\)"
    ) as it:
        session.move(SessionState.READY, "heartbeat", 4.0)
    assert [state for _, state, _ in it.value.history] == [
        SessionState.BUILDING,
        SessionState.READY,
        SessionState.LEFT,
    ]
