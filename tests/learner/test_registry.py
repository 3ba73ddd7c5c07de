"""The registry: workers' lives, who is let in, what is answered, and who gets the next tickets."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.config import RunConfig
from learner.dealing import shares
from learner.instructions import MOST_CHARACTERS, Instruction, Log, Send, SendSnapshot, StopRun
from learner.ledger import Deliveries, Delivery, Ledger
from learner.registry import Registry
from learner.roster import MOST_ENDED, MOST_SHARES
from learner.rounds import COALESCE_SECONDS, DEAL_SECONDS
from learner.sessions import InvalidMove, Session, SessionState
from learner.snapshots import SNAPSHOT_BURST_SECONDS, SNAPSHOT_SPACING_SECONDS
from protocol.codec import encode
from protocol.messages import (
    Answer,
    Built,
    Episode,
    Failure,
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    HelloAgain,
    Holdings,
    Ranges,
    Refuse,
    Report,
    SnapshotRequest,
    TicketRanges,
    Version,
    Welcome,
)
from protocol.ranges import to_ranges
from protocol.specs import EnvironmentSpec, PolicySpec, Spaces
from protocol.tickets import Ticket

NOTHING: Any = np.zeros(1, np.float32)
SPACES = Spaces(4, "float32", 2, False, 100)
BUILT = Built(SPACES, "probe-1", "Zen 4")
LIVENESS = 5.0


class Fleet:
    """A registry with a clock, and workers that say and see what a test wants."""

    def __init__(
        self,
        batch: int = 4,
        updates: int = 10,
        max_lag: int = 1,
        exact: bool = False,
        incarnation: int = 1,
        state: dict[str, Any] | None = None,
    ) -> None:
        config = RunConfig(
            episodes_per_update=batch,
            total_episodes=batch * updates,
            max_lag=max_lag,
            exact=exact,
            order="started" if exact else "arrival",
            max_losses=2,
            stuck_after_seconds=10.0,
        )
        environment, policy = EnvironmentSpec("toy", {}, SPACES), PolicySpec(4, 2)
        self.welcome = Welcome("run-1", 7, incarnation, "async", environment, policy, 1.0, LIVENESS)
        self.now = 100.0
        self.registry = Registry(config, self.welcome, "1.4.0", self.now, state)
        self.beats = 0
        self.log: list[str] = []

    def tick(self, drained: bool = True) -> list[Instruction]:
        """Return what is to be done after a moment, log lines apart."""
        self.now += DEAL_SECONDS
        instructions = self.registry.tick(self.now, drained)
        self.log += [line.text for line in instructions if isinstance(line, Log)]
        return [instruction for instruction in instructions if not isinstance(instruction, Log)]

    def hello(self, session: str = "a", slots: int = 2, **fields: Any) -> None:
        hello = Hello(session, f"host-{session}", 11, slots, "1.2.9")
        self.registry.hello(replace(hello, **fields), self.now)

    def beat(
        self,
        session: str = "a",
        answer: int = 0,
        incarnation: int = 1,
        state: Literal["building", "ready", "paused", "draining"] = "ready",
        built: Built | None = BUILT,
        failures: tuple[Failure, ...] = (),
        steps: int = 0,
        **places: set[int],
    ) -> None:
        """Send a heartbeat; `places` are queued, running, outbox and stalled train tickets."""
        self.beats += 1
        trains: dict[str, Any] = {place: {"train": to_ranges(tickets)} for place, tickets in places.items()}
        holdings = Holdings(**trains, failures=failures)
        heartbeat = Heartbeat(
            session, self.beats, incarnation, answer, state, holdings, built=built, steps=steps
        )
        self.registry.heartbeat(heartbeat, self.now)

    def join(self, session: str = "a", slots: int = 2) -> Answer:
        """Let a worker say hello and its first heartbeat; return the answer to that."""
        self.hello(session, slots)
        self.beat(session)
        return answers(self.tick())[session]

    def episode(self, number: int, session: str = "a", version: int = 0, run: str = "run-1") -> Delivery:
        ticket, stamp = Ticket("train", number), Version(1, version)
        return self.registry.episode(
            Episode(run, session, ticket, stamp, True, 1.0, NOTHING, NOTHING, NOTHING, NOTHING)
        )

    def update(self) -> None:
        """Train on the next batch."""
        assert self.registry.office.batches.take() is not None
        self.registry.publish(self.registry.office.version + 1)

    def state(self, session: str = "a") -> str:
        return next(w.state for w in self.registry.status(self.now).workers if w.session == session)


def answers(instructions: list[Instruction]) -> dict[str, Answer]:
    """Return the answer to each worker, of which there is at most one."""
    found = [i for i in instructions if isinstance(i, Send) and isinstance(i.message, Answer)]
    assert len({send.session for send in found}) == len(found)
    return {send.session: send.message for send in found if isinstance(send.message, Answer)}


def granted(answer: Answer) -> list[int]:
    return [number for grant in answer.grants for number in range(grant.start, grant.stop)]


def refusal(instructions: list[Instruction]) -> str:
    (message,) = [i.message for i in instructions if isinstance(i, Send)]
    assert isinstance(message, Refuse)
    return message.reason


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


# Heartbeats and answers


def test_a_heartbeat_of_a_stranger_is_told_to_say_hello() -> None:
    fleet = Fleet()
    fleet.beat("x")
    assert fleet.tick() == [Send("x", HelloAgain())]
    fleet.registry.snapshot_request(SnapshotRequest("y"), fleet.now)
    assert fleet.tick() == [Send("y", HelloAgain())]


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
    fleet.registry.heartbeat(Heartbeat("b", 99, 1, 1, "ready", claims), fleet.now)
    assert "claims 100,000 tickets" in refusal(fleet.tick())
    fleet.join("c")
    fleet.registry.goodbye(Goodbye("c", "bye", claims), fleet.now)
    assert "claims 100,000 tickets" in refusal(fleet.tick())
    assert fleet.registry.office.check() == []


def test_a_hello_begins_the_count_of_heartbeats_anew() -> None:
    fleet = Fleet()
    fleet.join()
    fleet.registry.heartbeat(Heartbeat("a", 2**62, 1, 1, "ready", Holdings()), fleet.now)
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
    fleet.registry.goodbye(Goodbye("a", forged), fleet.now)
    fleet.tick()
    assert all(line.isprintable() and len(line) <= MOST_CHARACTERS for line in fleet.log)
    assert sum("joins" in line for line in fleet.log) == 1
    (hosts,) = {worker.host.isprintable() for worker in fleet.registry.status(fleet.now).workers}
    assert hosts


def test_a_report_tells_no_session_and_fits_in_a_message_whatever_workers_call_themselves() -> None:
    fleet = Fleet()
    for number in range(2000):
        name = "\U0001f600" * 100
        fleet.hello(f"secret-{number}", host=name, pool=name, label=name)
    fleet.tick()
    first = 0
    seen: list[int] = []
    while not seen or first:
        plain = fleet.registry.report(fleet.now, first)
        assert plain["all_workers"] == 2000 and "secret" not in json.dumps(plain)
        encode(Report("status", plain))
        first = plain["next"]
        seen += [worker["number"] for worker in plain["workers"]]
    assert seen == list(range(1, 2001))


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


def test_a_reported_failure_is_issued_again_twice_then_logged_and_replaced() -> None:
    fleet = Fleet(batch=1, max_lag=0)
    answer = fleet.join(slots=1)
    for reason in ("one", "two", "three"):
        assert granted(answer) == [0]
        fleet.beat(answer=answer.number, failures=(Failure(Ticket("train", 0), reason),))
        answer = answers(fleet.tick())["a"]
        assert answer.drop == {"train": ((0, 1),)}
        fleet.beat(answer=answer.number)
        answer = answers(fleet.tick())["a"]
    assert granted(answer) == [1]
    assert "ticket train:0 is discarded: three" in fleet.log


def test_an_episode_of_another_run_is_invalid() -> None:
    fleet = Fleet()
    fleet.join()
    assert fleet.episode(0, run="run-0") is Delivery.INVALID
    assert fleet.episode(0) is Delivery.FIRST


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
    fleet.registry.undeliverable("a")
    fleet.episode(1, session="b", version=1)
    fleet.update()
    fleet.now += COALESCE_SECONDS
    assert all(not answer.grants for answer in answers(fleet.tick()).values())
    fleet.beat(answer=1)
    assert granted(answers(fleet.tick())["a"]) == [2]


def test_pause_and_drain_are_told_and_end_the_grants() -> None:
    fleet = Fleet()
    fleet.join(slots=1)
    fleet.registry.command("pause", ["host-a"])
    assert answers(fleet.tick())["a"].desired == "pause"
    fleet.beat(answer=1, running={0})
    assert granted(answers(fleet.tick())["a"]) == [], "it has not heard it yet"
    fleet.beat(answer=2, state="paused", running={0})
    answer = answers(fleet.tick())["a"]
    assert granted(answer) == [] and fleet.state() == "paused"
    fleet.registry.command("play", ["host-a"])
    fleet.beat(answer=3, state="ready", running={0})
    answer = answers(fleet.tick())["a"]
    assert granted(answer) == [1] and answer.desired == "play"


def test_a_command_to_all_holds_for_whoever_joins_later_and_one_by_name_for_those_who_are_there() -> None:
    fleet = Fleet()
    fleet.join("a")
    matched, unknown = fleet.registry.command("pause")
    assert [session.hello.session for session in matched] == ["a"] and unknown == []
    assert fleet.join("b").desired == "pause"
    fleet.registry.command("play", ["host-b"])
    assert fleet.join("c").desired == "pause", "the command to all still holds"
    fleet.registry.command("play")
    assert [worker.desired for worker in fleet.registry.status(fleet.now).workers] == ["play"] * 3
    assert fleet.join("d").desired == "play"


def test_a_worker_that_comes_back_is_still_meant_by_the_command() -> None:
    fleet = Fleet()
    fleet.join()
    fleet.registry.command("pause", ["host-a"])
    fleet.now += LIVENESS + 1
    fleet.tick()
    assert fleet.state() == "lost"
    assert fleet.join().desired == "pause"


def test_a_restarted_learner_lets_everybody_play() -> None:
    fleet = Fleet()
    fleet.join()
    fleet.registry.command("pause")
    again = Fleet(incarnation=2, state=fleet.registry.snapshot())
    assert again.join().desired == "play"


def test_who_was_drained_is_told_until_all_shall_play() -> None:
    """Whoever starts workers anew must know that these are to stay away."""
    fleet = Fleet()
    fleet.join()
    fleet.registry.command("drain", ["host-a:11"])
    fleet.registry.goodbye(Goodbye("a", "drained"), fleet.now)
    fleet.tick()
    assert fleet.state() == "left"
    assert fleet.registry.glance(fleet.now).drained == {("host-a", 11)}
    fleet.registry.command("play")
    assert not fleet.registry.glance(fleet.now).drained


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
    fleet.registry.goodbye(Goodbye("a", "SIGTERM", Holdings(outbox={"train": ((0, 1),)})), fleet.now)
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


def test_workers_that_are_gone_are_forgotten_in_the_end() -> None:
    fleet = Fleet()
    for place in range(MOST_ENDED + 5):
        fleet.hello(f"w{place}", run="another")
    fleet.join("here")
    fleet.now += COALESCE_SECONDS
    fleet.tick()
    workers = fleet.registry.status(fleet.now).workers
    assert len(workers) == MOST_ENDED + 1 and workers[0].session == "w5" and workers[-1].session == "here"


def test_the_end_of_the_run_is_told_to_who_is_there() -> None:
    fleet = Fleet()
    fleet.join("a")
    fleet.hello("b", run="another")
    fleet.tick()
    fleet.registry.finish("all updates are done")
    assert fleet.tick() == [Send("a", Goodbye("a", "all updates are done"))]
    fleet.beat("a", answer=1)
    assert granted(answers(fleet.tick())["a"]) == []


def test_after_a_stop_nothing_is_granted() -> None:
    fleet = Fleet(exact=True, batch=1, max_lag=0)
    answer = fleet.join(slots=1)
    for reason in ("one", "two", "three"):
        fleet.beat(answer=answer.number, failures=(Failure(Ticket("train", 0), reason),))
        instructions = fleet.tick()
        fleet.beat(answer=answers(instructions)["a"].number)
        instructions += fleet.tick()
        answer = answers(instructions[-1:])["a"]
    stops = [instruction for instruction in instructions if isinstance(instruction, StopRun)]
    assert stops == [StopRun("exact mode cannot leave out ticket train:0: three")]
    assert granted(answer) == []


def test_a_ticket_that_is_played_differently_again_stops_the_run_at_once() -> None:
    fleet = Fleet(exact=True, batch=1, max_lag=0)
    answer = fleet.join(slots=1)
    fleet.beat(answer=answer.number, failures=(Failure(Ticket("train", 0), "it leaks", final=True),))
    stops = [instruction for instruction in fleet.tick() if isinstance(instruction, StopRun)]
    assert stops == [StopRun("exact mode cannot leave out ticket train:0: it leaks")]


# Snapshots


def test_snapshots_are_spaced_asked_for_once_and_only_of_versions_that_are_kept() -> None:
    """1. thirty workers ask, one twice, one for what is gone; 2. a burst at once, the rest as time passes."""
    fleet = Fleet(exact=True, batch=1, max_lag=0)
    names = [f"w{place}" for place in range(30)]
    for name in names:
        fleet.hello(name)
    fleet.tick()
    for name in (*names, names[0]):
        fleet.registry.snapshot_request(SnapshotRequest(name), fleet.now)
    fleet.registry.snapshot_request(SnapshotRequest(names[1], version=5), fleet.now)
    sent: list[Instruction] = []
    begin = fleet.now
    while len(sent) < len(names):
        fleet.now += SNAPSHOT_SPACING_SECONDS
        sent += [i for i in fleet.registry.tick(fleet.now, True) if isinstance(i, SendSnapshot)]
        assert len(sent) <= 1 + (fleet.now - begin + SNAPSHOT_BURST_SECONDS) / SNAPSHOT_SPACING_SECONDS
    assert sent == [SendSnapshot(name, 0) for name in names]


def test_who_asks_for_the_newest_gets_the_newest_of_the_moment_it_is_sent() -> None:
    fleet = Fleet(batch=1, max_lag=0)
    fleet.join(slots=1)
    fleet.registry.snapshot_request(SnapshotRequest("a"), fleet.now)
    fleet.episode(0)
    fleet.update()
    assert [i for i in fleet.tick() if isinstance(i, SendSnapshot)] == [SendSnapshot("a", 1)]


# Status


def test_status_says_what_binds() -> None:
    """1. workers are busy; 2. all idle, stragglers hold the credit; 3. a batch waits for its update."""
    fleet = Fleet(batch=2, max_lag=0)
    assert fleet.registry.status(fleet.now).binds == "workers"
    fleet.join(slots=3)
    assert fleet.registry.status(fleet.now).binds == "credit"
    fleet.episode(0)
    fleet.episode(1)
    assert fleet.registry.status(fleet.now).binds == "update"


def test_status_says_that_an_operator_has_paused_the_fleet() -> None:
    fleet = Fleet()
    fleet.join("a")
    fleet.join("b")
    fleet.registry.command("pause", ["host-a"])
    assert fleet.registry.status(fleet.now).binds == "workers"
    fleet.registry.command("pause", ["host-b"])
    assert fleet.registry.status(fleet.now).binds == "pause"


def test_status_names_the_ticket_that_holds_the_batch_back() -> None:
    fleet = Fleet(batch=2, max_lag=0, exact=True)
    fleet.join(slots=2)
    fleet.beat(answer=1, running={0, 1})
    fleet.now += 5
    fleet.episode(1)
    fleet.beat(answer=1, running={0})
    fleet.tick()
    status = fleet.registry.status(fleet.now)
    assert status.binds == "ticket" and status.ticket is not None
    assert (status.ticket.number, status.ticket.holders, status.ticket.missing) == (0, ("host-a:11",), 1)
    assert status.ticket.age_seconds == pytest.approx(5, abs=0.1)
    fleet.episode(0)
    assert fleet.registry.status(fleet.now).binds == "update"


def test_status_tells_each_workers_pace() -> None:
    fleet = Fleet()
    fleet.join()
    for second in range(1, 21):
        fleet.now += 1
        fleet.beat(answer=1, steps=50 * second, queued={0})
    assert fleet.registry.status(fleet.now).workers[0].steps_per_second == pytest.approx(50)
    fleet.now += 12
    (worker,) = fleet.registry.status(fleet.now).workers
    assert 0 < worker.steps_per_second < 40, "what is not heard of is not taken for granted"


def test_status_counts_each_workers_tickets_and_is_plain() -> None:
    fleet = Fleet(batch=8)
    fleet.join(slots=2)
    fleet.beat(answer=1, outbox={0}, running={1, 2}, queued={3})
    fleet.episode(1)
    fleet.now += 0.5
    status = fleet.registry.status(fleet.now)
    (worker,) = status.workers
    assert (worker.host, worker.pid, worker.slots) == ("host-a", 11, 2)
    assert (worker.outbox, worker.running, worker.queued) == (1, 1, 1)
    assert worker.heartbeat_age_seconds == 0.5
    plain = json.loads(json.dumps(fleet.registry.report(fleet.now)))
    assert plain["issued"] == 4 and plain["received"] == 1 and plain["workers"][0]["state"] == "ready"


# Hostile workers

RANGES = st.sets(st.integers(0, 40), max_size=6).map(to_ranges)


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from(["hello", "beat", "goodbye", "episode", "undeliverable", "later"]),
            st.tuples(RANGES, RANGES, RANGES, RANGES),
            st.integers(0, 40),
            st.sampled_from(["building", "ready", "paused", "draining"]),
        ),
        max_size=40,
    )
)
def test_no_worker_can_break_the_books(
    events: list[tuple[str, str, tuple[Ranges, ...], int, Any]],
) -> None:
    fleet = Fleet(batch=3)
    for session, kind, ranges, number, state in events:
        places: list[TicketRanges] = [{"train": listed, "evaluate": listed} for listed in ranges]
        failures = (Failure(Ticket("train", number), "it broke"),)
        queued, running, outbox, stalled = places
        holdings = Holdings(queued, running, outbox, failures, stalled)
        match kind:
            case "hello":
                fleet.hello(session, slots=1 + number % 3, holdings=holdings)
            case "beat":
                fleet.beats += 1
                beat = Heartbeat(session, fleet.beats, 1, number // 8, state, holdings, built=BUILT)
                fleet.registry.heartbeat(beat, fleet.now)
            case "goodbye":
                fleet.registry.goodbye(Goodbye(session, "bye", holdings), fleet.now)
            case "episode":
                fleet.episode(number, session, version=number % 3)
            case "undeliverable":
                fleet.registry.undeliverable(session)
            case "later":
                fleet.now += number / 4
        if fleet.registry.office.batches.take() is not None:
            fleet.registry.publish(fleet.registry.office.version + 1)
        fleet.tick(drained=number % 2 == 0)
        assert fleet.registry.office.check() == []


def test_pool_and_label_are_shown_without_what_no_terminal_should_be_sent() -> None:
    fleet = Fleet()
    fleet.hello("a", pool="lab\x1b[2J", label="lab-17\n" + 200 * "x")
    (worker,) = fleet.registry.status(fleet.now).workers
    assert (worker.pool, worker.label) == ("lab[2J", "lab-17" + 94 * "x")


# Each worker's part in the ledger


def test_what_each_worker_was_given_and_delivered_adds_up_to_the_run() -> None:
    """a plays 0 and loses 1-3 to b by its death; b delivers 1 and, once more, 0; a stranger sends 1, too."""
    fleet = Fleet()
    assert granted(fleet.join("a")) == [0, 1, 2, 3]
    assert fleet.episode(0, "a") is Delivery.FIRST
    fleet.now += fleet.registry.config.liveness_seconds + 1
    fleet.hello("b")
    fleet.tick()
    fleet.beat("b")
    assert 1 in granted(answers(fleet.tick())["b"])
    for number, session in ((1, "b"), (0, "b"), (1, "stranger")):
        fleet.episode(number, session)
    ledger = Ledger.from_plain(fleet.registry.ledger_report())
    assert ledger.check() == [] and ledger.shares
    a, b, others = ledger.shares.workers
    assert a.given == a.received + a.taken_back and (a.received, a.held) == (1, 0)
    assert (b.received, b.deliveries) == (1, Deliveries(2, 1, 1)) and b.held > 0
    assert others.deliveries == Deliveries(1, 0, 1)

    wrong = (
        replace(ledger.shares, workers=(a, b)),
        replace(ledger.shares, workers=(replace(a, given=a.given + 1), b, others)),
        replace(ledger.shares, workers=(a, replace(b, deliveries=Deliveries(2, 1, 0)), others)),
    )
    assert all(replace(ledger, shares=shares).check() for shares in wrong)


def test_parts_of_workers_long_gone_are_summed_up() -> None:
    fleet = Fleet()
    for number in range(MOST_SHARES + 20):
        fleet.hello(f"s{number}", slots=1)
        fleet.episode(10**6, f"s{number}")
    ledger = Ledger.from_plain(fleet.registry.ledger_report())
    assert ledger.shares and len(ledger.shares.workers) == MOST_SHARES + 1 and ledger.check() == []
    assert ledger.shares.workers[-1].deliveries.invalid == 20
