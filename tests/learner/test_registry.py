"""The registry: episodes, commands, snapshots, the end of a run, and the law that no worker can break."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from learner.instructions import Instruction, Send, SendSnapshot, StopRun
from learner.ledger import Deliveries, Delivery, Ledger
from learner.roster import MOST_ENDED, MOST_SHARES
from learner.rounds import COALESCE_SECONDS
from learner.snapshots import SNAPSHOT_BURST_SECONDS, SNAPSHOT_SPACING_SECONDS
from protocol.messages import Failure, Goodbye, Heartbeat, Holdings, Ranges, SnapshotRequest, TicketRanges
from protocol.ranges import to_ranges
from protocol.tickets import Ticket
from tests.learner.fleets import BUILT, LIVENESS, Fleet, answers, granted

# Episodes and failures


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


# Commands


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
    fleet.registry.membership.goodbye(Goodbye("a", "drained"), fleet.now)
    fleet.tick()
    assert fleet.state() == "left"
    assert fleet.registry.glance(fleet.now).drained == {("host-a", 11)}
    fleet.registry.command("play")
    assert not fleet.registry.glance(fleet.now).drained


# The end


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
                fleet.registry.membership.heartbeat(beat, fleet.now)
            case "goodbye":
                fleet.registry.membership.goodbye(Goodbye(session, "bye", holdings), fleet.now)
            case "episode":
                fleet.episode(number, session, version=number % 3)
            case "undeliverable":
                fleet.registry.membership.undeliverable(session)
            case "later":
                fleet.now += number / 4
        if fleet.registry.office.batches.take() is not None:
            fleet.registry.publish(fleet.registry.office.version + 1)
        fleet.tick(drained=number % 2 == 0)
        assert fleet.registry.office.check() == []


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


def test_workers_that_are_gone_are_forgotten_in_the_end() -> None:
    fleet = Fleet()
    for place in range(MOST_ENDED + 5):
        fleet.hello(f"w{place}", run="another")
    fleet.join("here")
    fleet.now += COALESCE_SECONDS
    fleet.tick()
    workers = fleet.registry.status(fleet.now).workers
    assert len(workers) == MOST_ENDED + 1 and workers[0].session == "w5" and workers[-1].session == "here"
