"""The worker's state machine: stories of its life, and any sequence of events against a plain model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.messages import (
    Answer,
    Built,
    Failure,
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    HelloAgain,
    Holdings,
    Refuse,
    SnapshotRequest,
    TicketRanges,
    Version,
    Weights,
    Welcome,
)
from protocol.ranges import IntervalSet, to_ranges
from protocol.specs import EnvironmentSpec, PolicySpec, Spaces
from protocol.tickets import SequenceName, Ticket
from rollout_worker.addresses import DIAL_SECONDS
from rollout_worker.events import (
    Abandon,
    Build,
    BuildDone,
    BuildFailed,
    Dial,
    Drain,
    EpisodeFinished,
    Event,
    ExitCode,
    Forget,
    Instruction,
    Introduce,
    Push,
    Release,
    Send,
    Start,
    State,
    Stop,
    Telemetry,
    Terminate,
    Tick,
    TicketFailed,
)
from rollout_worker.membership import FLUSH_SECONDS, Membership
from rollout_worker.tickets import QUEUED_PER_SLOT, Tickets
from rollout_worker.watchdog import BUILD_PATIENCE

SPACES = Spaces(2, "uint8", 2, False, 10)
WELCOME = Welcome("run", 1, 1, "async", EnvironmentSpec("e", {}, SPACES), PolicySpec(2, 2), 1.0, 5.0)
HELLO = Hello("session", "host", 1, slots=2, software="test")
HELLO_IN_RUN = replace(HELLO, run="run")
BUILT = Built(SPACES, "probe", "processor")


def train(number: int) -> Ticket:
    return Ticket("train", number)


def weights(number: int, incarnation: int = 1) -> Weights:
    return Weights("run", Version(incarnation, number), "fingerprint", {})


def sent(instructions: Iterable[Instruction], kind: type) -> list[Any]:
    return [i.message for i in instructions if isinstance(i, Send) and isinstance(i.message, kind)]


def of(instructions: Iterable[Instruction], kind: type) -> list[Any]:
    return [i for i in instructions if isinstance(i, kind)]


class Life:
    """A membership with a clock; `do` handles events and keeps all instructions."""

    def __init__(self, **options: Any) -> None:
        self.now = 0.0
        self.machine = Membership(HELLO, self.now, **options)

    def do(self, *events: Event) -> list[Any]:
        return [i for event in events for i in self.machine.handle(event, self.now)]

    def after(self, seconds: float, telemetry: Telemetry | None = None) -> list[Any]:
        """Let time pass, with a tick whenever one is due."""
        end, done = self.now + seconds, list[Any]()
        while (due := self.machine.next_tick(self.now)) <= end:
            self.now = max(self.now, due)
            done += self.do(Tick(telemetry or Telemetry()))
        self.now = end
        return done

    def playing(self) -> Life:
        self.do(WELCOME, BuildDone(BUILT), weights(0))
        self.after(0.1)
        return self


def test_a_life_from_hello_to_goodbye() -> None:
    life = Life()
    assert sent(life.after(0.0), Hello) == [HELLO]
    assert of(life.do(WELCOME), Build) == [Build(WELCOME)]
    building = life.after(0.0)
    assert [h.state for h in sent(building, Heartbeat)] == ["building"]
    assert sent(building, SnapshotRequest) == [SnapshotRequest("session", None)]
    life.do(BuildDone(BUILT), weights(4))
    (heartbeat,) = sent(life.after(0.05), Heartbeat)
    assert (heartbeat.state, heartbeat.built, heartbeat.version) == ("ready", BUILT, Version(1, 4))
    grant = Grant("train", 5, 8, version=3)
    assert life.do(Answer(1, 1, 4, grants=(grant,))) == [
        Start(train(5), Version(1, 4)),
        Start(train(6), Version(1, 4)),
    ]
    assert life.do(EpisodeFinished(train(6))) == [Push((train(6),)), Start(train(7), Version(1, 4))]
    (heartbeat,) = sent(life.after(0.05), Heartbeat)
    assert heartbeat.answer == 1
    assert heartbeat.holdings == Holdings({}, {"train": ((5, 6), (7, 8))}, {"train": ((6, 7),)})
    assert life.do(Answer(1, 2, 4, drop={"train": ((6, 7),)})) == [Forget((train(6),))]
    assert of(life.do(Terminate("SIGTERM")), Abandon) == [Abandon((train(5), train(7)))]
    *_, goodbye, stop = life.after(0.0)
    assert goodbye == Send(Goodbye("session", "SIGTERM"))
    assert stop == Stop(ExitCode.DONE, "SIGTERM")
    assert life.machine.state is State.ENDED and life.do(WELCOME, Tick()) == []


def test_an_environment_that_holds_up_its_worker_ends_it_after_the_learner_has_noticed() -> None:
    """The learner hears of the stall after 2 heartbeats and counts its own 60 s from there."""
    life = Life().playing()
    life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 2, 0),)))
    assert not of(life.after(62.0, Telemetry(passes=1)), Stop)
    done = life.after(3.0, Telemetry(passes=1))
    (goodbye,), (stop,) = sent(done, Goodbye), of(done, Stop)
    assert stop.code is ExitCode.ERROR and stop.reason == goodbye.reason
    assert "environment e makes no step, in one of the tickets train:0, train:1 for 6" in stop.reason


def test_a_worker_that_steps_waits_or_was_frozen_is_not_held_up() -> None:
    life = Life().playing()
    assert not of(life.after(300.0), Stop)
    life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 2, 0),)))
    for passes in range(1, 10):
        assert not of(life.after(50.0, Telemetry(passes=passes)), Stop)
    life.now += 1000.0
    assert not of(life.after(5.0, Telemetry(passes=9)), Stop)


def test_a_build_may_take_longer_than_a_step_but_not_for_ever() -> None:
    for seconds, ends in ((60.0 * BUILD_PATIENCE - 2, False), (60.0 * BUILD_PATIENCE + 2, True)):
        life = Life()
        life.do(WELCOME)
        assert [stop.code for stop in of(life.after(seconds), Stop)] == [ExitCode.ERROR] * ends
    life = Life()
    life.do(WELCOME)
    life.after(60.0 * BUILD_PATIENCE - 2)
    life.do(BuildDone(BUILT), weights(0), Answer(1, 1, 0, grants=(Grant("train", 0, 2, 0),)))
    assert not of(life.after(60.0), Stop)


def test_many_changes_share_one_heartbeat_and_a_quiet_worker_beats_each_second() -> None:
    life = Life().playing()
    life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 8, 0),)))
    beats = 0
    for number in range(6):
        life.do(EpisodeFinished(train(number)))
        beats += len(sent(life.after(0.002), Heartbeat))
    assert beats <= 2
    life.after(0.1)
    assert len(sent(life.after(10.0), Heartbeat)) == 10


def test_answers_of_older_incarnations_and_repeated_answers_change_nothing() -> None:
    life = Life().playing()
    life.do(replace(WELCOME, incarnation=3), weights(0, 3))
    first = Answer(3, 5, 0, grants=(Grant("train", 0, 1, 0),))
    assert of(life.do(first), Start) == [Start(train(0), Version(3, 0))]
    drop: TicketRanges = {"train": ((0, 1),)}
    for stale in (Answer(3, 5, 0, drop), Answer(3, 4, 0, drop), Answer(2, 9, 0, drop)):
        assert life.do(stale) == []
    assert life.machine.tickets.running.keys() == {train(0)}


def test_an_answer_of_a_later_incarnation_than_welcomed_makes_it_say_hello() -> None:
    life = Life().playing()
    assert life.do(Answer(2, 1, 0, grants=(Grant("train", 0, 1, 0),))) == []
    assert len(sent(life.after(0.0), Hello)) == 1


def test_a_learner_that_forgot_the_session_is_heard_again() -> None:
    life = Life().playing()
    life.do(Answer(1, 9, 0), HelloAgain(), WELCOME)
    assert of(life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 1, 0),))), Start) != []


def test_a_new_incarnation_is_followed_and_the_outbox_pushed_again() -> None:
    life = Life().playing()
    life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 5, 0),)))
    life.do(EpisodeFinished(train(0)), EpisodeFinished(train(1)))
    life.do(HelloAgain())
    (hello,) = sent(life.after(0.0), Hello)
    assert (hello.run, hello.holdings.outbox) == ("run", {"train": ((0, 2),)})
    life.do(replace(WELCOME, incarnation=2))
    # The new learner knows ticket 0 only as received, and nothing of ticket 4.
    did = life.do(Answer(2, 1, 0, drop={"train": ((0, 1), (4, 5))}))
    assert did == [Forget((train(0),)), Push((train(1),))]
    assert not life.machine.tickets.queued
    assert sent(life.after(0.0), SnapshotRequest) == [SnapshotRequest("session", None)]
    # What still runs goes on under its old version; what starts, under the new incarnation only.
    life.do(Answer(2, 2, 0, grants=(Grant("train", 9, 10, 0),)))
    assert life.do(EpisodeFinished(train(2))) == [Push((train(2),))]
    assert of(life.do(weights(0, 2)), Start) == [Start(train(9), Version(2, 0))]


def test_an_older_learner_is_not_followed_and_another_run_ends_the_worker() -> None:
    life = Life().playing()
    life.do(replace(WELCOME, incarnation=2))
    life.do(HelloAgain(), replace(WELCOME, incarnation=1))
    (heartbeat,) = sent(life.after(0.05), Heartbeat)
    assert heartbeat.incarnation == 2  # which stops the older learner
    (stop,) = life.do(replace(WELCOME, run="another"))
    assert stop.code is ExitCode.REFUSED and "another" in stop.reason


def test_an_episode_that_is_not_acknowledged_is_pushed_again() -> None:
    life = Life().playing()
    life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 1, 0),)), EpisodeFinished(train(0)))
    life.after(4.0)
    assert life.do(Answer(1, 2, 0)) == []
    life.after(2.0)
    assert life.do(Answer(1, 3, 0)) == [Push((train(0),))]
    assert life.do(Answer(1, 4, 0)) == []


def test_exact_tickets_wait_for_their_version_and_ask_for_it() -> None:
    life = Life().playing()
    life.do(weights(7))
    assert life.do(Answer(1, 1, 7, grants=(Grant("train", 0, 1, version=5, exact=True),))) == []
    assert sent(life.after(0.0), SnapshotRequest) == [SnapshotRequest("session", 5)]
    assert sent(life.after(0.9), SnapshotRequest) == []  # rate-limited
    assert sent(life.after(0.2), SnapshotRequest) == [SnapshotRequest("session", 5)]
    assert of(life.do(weights(5)), Start) == [Start(train(0), Version(1, 5), twice=True)]
    assert of(life.do(*(weights(number) for number in range(8, 12))), Release)[-1] == Release(
        (Version(1, 8),)
    )
    assert Version(1, 5) in life.machine.versions.held


def test_every_hundredth_exact_train_ticket_is_played_twice() -> None:
    life = Life().playing()
    life.do(weights(0))
    grants = (
        *(Grant("train", start, start + 2, version=0, exact=True) for start in (99, 199)),
        *(Grant("train", 300, 301, version=0), Grant("evaluate", 400, 401, version=0, exact=True)),
    )
    starts = of(life.do(Answer(1, 1, version=0, grants=grants)), Start)
    for start in starts:
        starts += of(life.do(EpisodeFinished(start.ticket)), Start)
    assert len(starts) == 6
    assert {start.ticket for start in starts if start.twice} == {train(100), train(200)}


def test_missed_weights_are_asked_for_after_a_grace() -> None:
    life = Life().playing()
    life.do(Answer(1, 1, version=1))
    assert sent(life.after(0.05), SnapshotRequest) == []
    assert sent(life.after(0.1), SnapshotRequest) == [SnapshotRequest("session", None)]
    life.do(weights(1))
    life.do(Answer(1, 2, version=2))
    life.after(0.05)
    life.do(weights(2))
    assert sent(life.after(2.0), SnapshotRequest) == []


def test_pause_returns_the_queue_and_drain_ends_when_all_is_received() -> None:
    life = Life().playing()
    life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 4, 0),)))
    life.do(Answer(1, 2, 0, grants=(Grant("train", 8, 9, 0),), desired="pause"))
    (heartbeat,) = sent(life.after(0.05), Heartbeat)
    assert (heartbeat.state, heartbeat.answer) == ("paused", 2)
    assert heartbeat.holdings == Holdings(running={"train": ((0, 2),)})
    assert life.do(Answer(1, 3, 0, grants=(Grant("train", 2, 3, 0),))) != []
    life.do(EpisodeFinished(train(0)), Answer(1, 4, 0, desired="drain"))
    assert life.do(EpisodeFinished(train(1))) == [Push((train(1),))]
    assert of(life.after(3.0), Stop) == []
    life.do(Answer(1, 5, 0, drop={"train": ((0, 3),)}, desired="drain"))
    assert of(life.after(1.1), Stop) == [Stop(ExitCode.DONE, "drained")]


def test_a_worker_drains_by_itself_whatever_the_learner_desires() -> None:
    life = Life().playing()
    life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 4, 0),)))
    assert of(life.do(Drain("SIGTERM", 50.0)), Abandon) == []
    (heartbeat,) = sent(life.after(0.05), Heartbeat)
    assert (heartbeat.state, heartbeat.holdings) == ("draining", Holdings(running={"train": ((0, 2),)}))
    assert life.do(Answer(1, 2, 0, grants=(Grant("train", 2, 4, 0),), desired="play")) == []
    life.do(EpisodeFinished(train(0)), Drain("SIGUSR1"), Answer(1, 3, 0, {"train": ((0, 1),)}))
    life.do(EpisodeFinished(train(1)))
    assert of(life.after(3.0), Stop) == []
    life.do(Answer(1, 4, 0, drop={"train": ((1, 2),)}, desired="pause"))
    *_, goodbye, stop = life.after(1.1)
    assert goodbye == Send(Goodbye("session", "SIGTERM: drained"))
    assert stop == Stop(ExitCode.DONE, "SIGTERM: drained")


def test_a_drain_has_an_end_which_a_later_wish_does_not_put_off() -> None:
    for wishes in ([Drain("SIGTERM", 5.0), Drain("SIGUSR1")], [Drain("SIGUSR1"), Drain("SIGTERM", 5.0)]):
        life = Life().playing()
        life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 2, 0),)), *wishes)
        assert of(life.after(4.9), Abandon) == []
        done = life.after(0.2)
        assert of(done, Abandon) == [Abandon((train(0), train(1)))]
        (stop,) = of(done, Stop)
        assert stop.code is ExitCode.DONE and "2 tickets go back" in stop.reason


def test_a_drain_is_cut_short_by_terminate() -> None:
    life = Life().playing()
    life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 2, 0),)), Drain("SIGUSR1"))
    assert of(life.do(Terminate("SIGTERM")), Abandon) == [Abandon((train(0), train(1)))]
    assert of(life.after(0.0), Stop) == [Stop(ExitCode.DONE, "SIGTERM")]


def test_a_worker_with_nothing_to_drain_leaves_at_once() -> None:
    for events in (
        (),
        (WELCOME,),
        (WELCOME, BuildDone(BUILT)),
        (replace(WELCOME, mode="sync"), BuildDone(BUILT)),
    ):
        life = Life()
        stops = of([*life.do(*events, Drain("SIGTERM", 50.0)), *life.after(0.0)], Stop)
        assert [stop.code for stop in stops] == [ExitCode.DONE]


def test_a_worker_that_leaves_waits_for_its_outbox_but_not_for_ever() -> None:
    life = Life().playing()
    life.do(
        Answer(1, 1, 0, grants=(Grant("train", 0, 1, 0),)), EpisodeFinished(train(0)), Terminate("SIGTERM")
    )
    assert of(life.after(FLUSH_SECONDS - 0.01), Stop) == []
    *_, goodbye, stop = life.after(0.02)
    assert goodbye.message.holdings.outbox == {"train": ((0, 1),)}
    assert stop.code is ExitCode.DONE


def test_failures_are_reported_until_settled_and_too_many_in_a_row_end_the_worker() -> None:
    life = Life(max_failures=3).playing()
    life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 9, 0),)))
    life.do(
        TicketFailed(Failure(train(0), "boom")),
        TicketFailed(Failure(train(1), "boom")),
        EpisodeFinished(train(2)),
    )
    (heartbeat,) = sent(life.after(0.05), Heartbeat)
    assert heartbeat.holdings.failures == (Failure(train(0), "boom"), Failure(train(1), "boom"))
    life.do(Answer(1, 2, 0, drop={"train": ((0, 3),)}))
    life.do(*(TicketFailed(Failure(train(number), "boom")) for number in (3, 4)))
    assert of(life.after(2.0), Stop) == []
    life.do(TicketFailed(Failure(train(5), "boom")))
    (stop,) = of(life.after(2.0), Stop)
    assert stop.code is ExitCode.ERROR and "3 failures in a row" in stop.reason


def test_running_tickets_that_no_pass_touched_are_stalled() -> None:
    life = Life().playing()
    life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 1, 0),)))
    stalls = [h.holdings.stalled for h in sent(life.after(3.0, Telemetry(passes=7)), Heartbeat)]
    assert stalls == [{}, {"train": ((0, 1),)}, {"train": ((0, 1),)}]
    assert sent(life.after(1.0, Telemetry(passes=8)), Heartbeat)[0].holdings.stalled == {}


def test_hellos_slow_down_and_silence_gives_up() -> None:
    life = Life(give_up_after_seconds=3600.0)
    assert 15 < len(sent(life.after(30.0), Hello)) < 40
    assert 1500 < len(sent(life.after(3569.0), Hello)) < 3600
    (stop,) = of(life.after(2.0), Stop)
    assert stop.code is ExitCode.GAVE_UP


def test_a_frozen_process_does_not_give_up_when_it_thaws() -> None:
    life = Life(give_up_after_seconds=30.0).playing()
    life.now += 3600.0
    assert of(life.do(Tick()), Stop) == []
    life.do(HelloAgain())
    assert len(sent(life.after(0.0), Hello)) == 1


def test_in_sync_mode_it_says_that_it_is_here_whenever_the_learner_may_not_know() -> None:
    life, welcome = Life(), replace(WELCOME, mode="sync")
    assert of(life.do(welcome), Build) == [Build(welcome)]
    assert of(life.do(BuildDone(BUILT)), Introduce) == [Introduce(1)]
    quiet = life.after(10.0)
    assert sent(quiet, SnapshotRequest) == [] and 10 <= len(sent(quiet, Heartbeat)) <= 12
    assert sent(life.do(HelloAgain()) + life.after(0.0), Hello) == [HELLO_IN_RUN]
    assert of(life.do(welcome), Introduce) == [Introduce(1)]
    assert of(life.do(replace(welcome, incarnation=2)), Introduce) == [Introduce(2)]
    assert of(life.do(welcome), Introduce) == []  # an older learner
    life.do(Answer(2, 1, 0, desired="pause"))
    assert [beat.state for beat in sent(life.after(0.1), Heartbeat)] == ["paused"]
    life.do(Answer(2, 2, 0, desired="drain"))
    *_, goodbye, stop = life.after(0.1)
    assert goodbye == Send(Goodbye("session", "drained")) and stop == Stop(ExitCode.DONE, "drained")


def test_a_run_keeps_its_mode() -> None:
    (stop,) = of(Life().playing().do(replace(WELCOME, mode="sync", incarnation=2)), Stop)
    assert stop.code is ExitCode.REFUSED and "mode" in stop.reason


def test_refuse_goodbye_and_a_failed_build_end_the_worker() -> None:
    for event, code in (
        (Refuse("another version"), ExitCode.REFUSED),
        (Goodbye("session", "the run is over"), ExitCode.DONE),
    ):
        did = Life().do(event)
        (stop,) = of(did, Stop)
        assert stop.code is code
        assert len(sent(did, Goodbye)) == (code is ExitCode.DONE), "a learner waits until all have gone"
    life = Life()
    life.do(WELCOME, BuildFailed("no such module"))
    did = life.after(0.0)
    assert sent(did, Heartbeat)[0].error == "no such module"
    assert sent(did, Goodbye) == [Goodbye("session", "no such module")]
    assert of(did, Stop) == [Stop(ExitCode.ERROR, "no such module")]


def _allowed(tickets: Tickets, event: Event) -> dict[Ticket, list[Any]]:
    """Return the terms under which each ticket may begin: those queued, or granted now if there is room."""
    allowed: dict[Ticket, list[Any]] = {ticket: [terms] for ticket, terms in tickets.queued.items()}
    for grant in event.grants if isinstance(event, Answer) else ():
        for number in range(grant.start, grant.stop):
            allowed.setdefault(Ticket(grant.sequence, number), []).append(grant)
    return allowed


class AnyLife(RuleBasedStateMachine):
    """Whatever a learner says, the machine, its player and its outbox agree, and tickets are in one place."""

    tickets = Bundle("tickets")

    @initialize()
    def begin(self) -> None:
        self.life = Life()
        self.machine = self.life.machine
        self.playing: dict[Ticket, Version] = {}
        self.frames: set[Ticket] = set()
        self.held: set[Version] = set()
        self.answers = 0
        self.do(WELCOME, BuildDone(BUILT))

    def do(self, *events: Event) -> None:
        for event in events:
            if isinstance(event, Weights):
                self.held.add(event.version)
            allowed = _allowed(self.machine.tickets, event)
            for instruction in self.life.do(event):
                self.carry_out(instruction, allowed)

    def carry_out(self, instruction: Instruction, allowed: dict[Ticket, list[Any]]) -> None:
        match instruction:
            case Start(ticket, version):
                assert ticket not in self.playing and version in self.held
                assert version.incarnation == self.machine.incarnation
                self.playing[ticket] = version
                assert len(self.playing) <= HELLO.slots
                assert any(
                    version.number == terms.version or (version.number > terms.version and not terms.exact)
                    for terms in allowed[ticket]
                )
            case Abandon(tickets):
                for ticket in tickets:
                    del self.playing[ticket]
            case Push(tickets):
                assert self.frames.issuperset(tickets)
            case Forget(tickets):
                self.frames.difference_update(tickets)
            case Release(versions):
                assert self.held.issuperset(versions) and not set(versions) & set(self.playing.values())
                self.held.difference_update(versions)
            case Send(Heartbeat(holdings=holdings)) | Send(Hello(holdings=holdings)):
                for name in ("queued", "running", "outbox"):
                    self.assert_states(getattr(holdings, name), getattr(self.machine.tickets, name))
            case Stop():
                self.machine.state = State.ENDED

    def assert_states(self, ranges: TicketRanges, tickets: Iterable[Ticket]) -> None:
        listed = {Ticket(sequence, number) for sequence in ranges for number in IntervalSet(ranges[sequence])}
        assert listed == set(tickets)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.01, 0.5, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.life.now += seconds
        self.do(Tick())

    @rule(number=st.integers(0, 9), incarnation=st.integers(0, 2))
    def weights_come(self, number: int, incarnation: int) -> None:
        version = Version(max(1, self.machine.incarnation - 1 + incarnation), number)
        self.do(Weights("run", version, "fingerprint", {}))

    @rule(
        data=st.data(),
        step=st.integers(-1, 2),
        grants=st.lists(
            st.builds(
                lambda sequence, start, count, version, exact: Grant(
                    sequence, start, start + count, version, exact
                ),
                st.sampled_from(["train", "evaluate"]),
                st.integers(0, 30),
                st.integers(1, 30),
                st.integers(0, 9),
                st.booleans(),
            ),
            max_size=2,
        ),
        desired=st.sampled_from(["play", "play", "play", "pause", "drain"]),
    )
    def an_answer_comes(
        self, data: st.DataObject, step: int, grants: list[Grant], desired: Literal["play", "pause", "drain"]
    ) -> None:
        tickets = self.machine.tickets
        held = [*tickets.queued, *tickets.running, *tickets.outbox, *tickets.failures]
        dropped = data.draw(st.sets(st.sampled_from(held))) if held else set()
        drop: dict[SequenceName, Any] = {}
        for ticket in dropped:
            drop[ticket.sequence] = to_ranges(t.number for t in dropped if t.sequence == ticket.sequence)
        self.answers = max(1, self.answers + step)
        self.do(Answer(self.machine.incarnation, self.answers, 0, drop, tuple(grants), desired))

    @precondition(lambda self: self.playing)
    @rule(data=st.data(), fails=st.booleans())
    def an_episode_ends(self, data: st.DataObject, fails: bool) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.playing)))
        del self.playing[ticket]
        if fails:
            self.do(TicketFailed(Failure(ticket, "boom")))
        else:
            self.frames.add(ticket)
            self.do(EpisodeFinished(ticket))

    @rule(number=st.integers(0, 40))
    def an_abandoned_episode_ends_too_late(self, number: int) -> None:
        ticket = train(number)
        if ticket not in self.playing and ticket not in self.frames:
            self.frames.add(ticket)
            self.do(EpisodeFinished(ticket))

    @rule()
    def the_learner_forgets_the_session(self) -> None:
        self.do(HelloAgain())

    @rule(raised=st.integers(-1, 1))
    def the_learner_welcomes(self, raised: int) -> None:
        if raised == 1:
            self.answers = 0
        self.do(replace(WELCOME, incarnation=max(1, self.machine.incarnation + raised)))

    @precondition(lambda self: self.machine.tickets.queued or self.machine.tickets.outbox)
    @rule()
    def a_signal_comes(self) -> None:
        self.do(Terminate("SIGTERM"))

    @precondition(lambda self: self.machine.tickets.running)
    @rule(limit_seconds=st.sampled_from([0.0, 1.0, math.inf]))
    def a_drain_is_wished(self, limit_seconds: float) -> None:
        self.do(Drain("SIGTERM", limit_seconds))

    @invariant()
    def each_ticket_is_in_one_place(self) -> None:
        held = self.machine.tickets
        places: list[dict[Ticket, Any]] = [held.queued, held.running, held.outbox, held.failures]
        assert len(set().union(*places)) == sum(map(len, places))
        assert len(held.queued) <= QUEUED_PER_SLOT * HELLO.slots

    @invariant()
    def player_outbox_and_weights_agree(self) -> None:
        if self.machine.state is not State.ENDED:
            assert self.playing == self.machine.tickets.running
            assert self.frames == self.machine.tickets.outbox.keys()
            assert self.held == self.machine.versions.held

    @invariant()
    def no_slot_idles_beside_a_ticket_that_could_begin(self) -> None:
        machine = self.machine
        if machine.state is State.PLAYING and len(machine.tickets.running) < HELLO.slots:
            numbers = [v.number for v in machine.versions.held if v.incarnation == machine.incarnation]
            newest = max(numbers, default=-1)
            for terms in machine.tickets.queued.values():
                assert terms.version not in numbers if terms.exact else terms.version > newest

    @invariant()
    def the_next_tick_is_known(self) -> None:
        assert (
            self.machine.next_tick(self.life.now) <= self.life.now + 1.0 or self.machine.state is State.ENDED
        )
        assert not math.isnan(self.machine.next_tick(self.life.now))


AnyLife.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestAnyLife = AnyLife.TestCase


# Several addresses

ADDRESSES = ("a:1", "b:1", "c:1")
ELSEWHERE = replace(WELCOME, run="another")


def test_a_worker_looks_for_its_learner_at_each_address_in_turn() -> None:
    life = Life(addresses=ADDRESSES)
    done = life.after(5 * DIAL_SECONDS)
    assert [dial.address for dial in of(done, Dial)] == ["b:1", "c:1", "a:1", "b:1"]
    assert sent(done, Hello)
    assert not of(Life(addresses=ADDRESSES[:1]).after(60), Dial)


def test_a_silent_learner_is_looked_for_elsewhere_and_the_outbox_is_pushed_there() -> None:
    """1. a ticket is played; 2. silence for the liveness limit; 3. the learner is back at b, a life later."""
    life = Life(addresses=ADDRESSES).playing()
    life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 1, 0, False),)), EpisodeFinished(train(0)))
    assert not of(life.after(WELCOME.liveness_seconds - 1), Dial)
    assert [dial.address for dial in of(life.after(2), Dial)] == ["b:1"]
    (hello, *_) = sent(life.after(1), Hello)
    assert (hello.run, hello.holdings.outbox) == ("run", {"train": ((0, 1),)})
    life.do(replace(WELCOME, incarnation=2))
    assert of(life.do(Answer(2, 1, 0)), Push) == [Push((train(0),))]
    assert life.machine.incarnation == 2 and not of(life.after(4), Dial)


def test_a_learner_that_was_replaced_and_one_of_another_run_are_passed_by() -> None:
    life = Life(addresses=ADDRESSES).playing()
    life.do(replace(WELCOME, incarnation=3))
    for other, address in ((WELCOME, "b:1"), (ELSEWHERE, "c:1"), (replace(WELCOME, incarnation=2), "a:1")):
        done = life.do(other)
        assert [dial.address for dial in of(done, Dial)] == [address] and not of(done, Stop)
    assert life.machine.incarnation == 3
    assert of(life.after(1), Dial) == [] and sent(life.after(1), Heartbeat) == []


def test_a_worker_that_only_finds_others_gives_up() -> None:
    life = Life(addresses=ADDRESSES, give_up_after_seconds=30).playing()
    done: list[Any] = []
    for _ in range(40):
        done += life.after(1) + life.do(ELSEWHERE)
    (stop,) = of(done, Stop)
    assert stop.code is ExitCode.GAVE_UP and "a:1 or b:1 or c:1" in stop.reason


def test_a_worker_that_leaves_dials_nobody() -> None:
    life = Life(addresses=ADDRESSES).playing()
    life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 1, 0, False),)), EpisodeFinished(train(0)))
    life.after(WELCOME.liveness_seconds - 0.1)
    life.do(Terminate("SIGTERM"))
    assert not of(life.after(10), Dial) and life.machine.state is State.ENDED


def test_a_worker_that_hangs_ends_even_when_its_tickets_have_gone_to_others() -> None:
    life = Life().playing()
    life.do(Answer(1, 1, 0, grants=(Grant("train", 0, 1, 0, False),)))
    hangs = Telemetry(passes=7, inside=True)
    life.after(1, hangs)
    life.do(Answer(1, 2, 0, drop={"train": ((0, 1),)}))
    assert not life.machine.tickets.running
    for number in range(3, 100):
        if stopped := of(life.after(1, hangs) + life.do(Answer(1, number, 0)), Stop):
            break
    assert "makes no step for" in stopped[0].reason and number < WELCOME.stuck_after_seconds + 10
    idle = Life().playing()
    for number in range(1, 100):
        assert not of(idle.after(1, Telemetry(passes=7)) + idle.do(Answer(1, number, 0)), Stop)
