"""A worker's life as one pure state machine: events in, instructions out; no socket, clock or thread inside.

    JOINING --Welcome--> BUILDING --BuildDone--> PLAYING <--desired--> PAUSED, DRAINING
    any state --Terminate, Refuse, Goodbye, silence, an environment that hangs--> LEAVING or ENDED

The machine owns the `Tickets`, each in exactly one place, and the `Versions` that they begin under. Every
heartbeat states all tickets, so a lost message costs a second, not a ticket. The caller gives a monotonic
`now` with each event and a `Tick` no later than `next_tick` says, and does in order what comes back.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from protocol.messages import (
    Answer,
    Built,
    Failure,
    Goodbye,
    Heartbeat,
    Hello,
    HelloAgain,
    Holdings,
    Refuse,
    SnapshotRequest,
    Weights,
    Welcome,
)
from protocol.tickets import Ticket
from rollout_worker.addresses import DIAL_SECONDS, Addresses
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
    FromLearner,
    Instruction,
    Introduce,
    Log,
    Send,
    State,
    Stop,
    Telemetry,
    Terminate,
    Tick,
    TicketFailed,
)
from rollout_worker.tickets import Tickets
from rollout_worker.versions import Versions
from rollout_worker.watchdog import Watchdog

CHANGE_SECONDS = 0.02
"""A change waits until the last heartbeat is this old: many episodes share one heartbeat."""
IDLE_SECONDS = 0.005
"""The same while a slot stands idle."""
HELLO_SECONDS, HELLO_MOST_SECONDS = 0.1, 2.0
"""First and longest pause between hellos; each doubles the one before, less up to half at random."""
FLUSH_SECONDS = 1.2
"""A worker that leaves waits at most this long for its outbox to be acknowledged."""


class Membership:
    """One worker's membership of a run; `hello` is the template of its hellos, without run and holdings."""

    def __init__(
        self,
        hello: Hello,
        now: float,
        give_up_after_seconds: float = 600.0,
        max_failures: int = 5,
        addresses: Sequence[str] = ("HOST:PORT",),
    ) -> None:
        self.state = State.JOINING
        self.welcome: Welcome | None = None
        self.tickets = Tickets(hello.slots)
        self.versions = Versions(now)
        self._hello, self._session = hello, hello.session
        self._addresses = Addresses(addresses)
        self._give_up_after_seconds, self._max_failures = give_up_after_seconds, max_failures
        self._jitter = random.Random(hello.session)
        self._known = False
        """Whether the learner knows this session: heartbeats then, hellos otherwise."""
        self._hello_at, self._hellos, self._dials = now, 0, 0
        self._heartbeat_at = self._ticked_at = now
        self._silent_seconds = 0.0
        self._changed = self._settling = False
        self._answer = self._number = 0
        self._desired: Literal["play", "pause", "drain"] = "play"
        self._built: Built | None = None
        self._error = ""
        self._passes, self._seen_running = -1, frozenset[Ticket]()
        self._watchdog = Watchdog()
        self._end, self._end_at = Stop(ExitCode.DONE, ""), math.inf
        self._drains = ""
        """Why this worker drains of its own accord, whatever the learner desires."""
        self._drain_until = math.inf

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take one event in; return what is to be done, in order."""
        if self.state is State.ENDED:
            return []
        if isinstance(event, FromLearner) and not self._foreign(event):
            self._silent_seconds = 0.0
            self._addresses.heard()
        instructions = list(self._react(event, now))
        if self.state is State.PLAYING:
            instructions += self.tickets.start(self.versions.version_for)
        return instructions

    @property
    def incarnation(self) -> int:
        """Return the incarnation of the learner that this worker follows; 0 before there is one."""
        return self.versions.incarnation

    @property
    def _hosts(self) -> bool:
        """Say whether the learner plays itself, and this worker only hosts: no tickets, no weights."""
        return self.welcome is not None and self.welcome.mode == "sync"

    def next_tick(self, now: float) -> float:
        """Return the time of the next Tick at the latest."""
        if self.state is State.ENDED:
            return math.inf
        times = [now + 1.0, self._end_at, self._heartbeat_due() if self._known else self._hello_at]
        times += [self._drain_until] if self.state is State.DRAINING else []
        times += [self.versions.ask_at(version) for version in self._missing()]
        return min(times)

    def holdings(self, telemetry: Telemetry | None = None) -> Holdings:
        """Return all tickets held; stalled are those that no pass touched since the last heartbeat."""
        stands = telemetry is not None and telemetry.passes == self._passes
        return self.tickets.holdings(self._seen_running & self.tickets.running.keys() if stands else ())

    def _react(self, event: Event, now: float) -> Iterator[Instruction]:
        match event:
            case Tick(telemetry):
                yield from self._tick(telemetry, now)
            case Welcome():
                yield from self._welcomed(event, now)
            case HelloAgain():
                self._known, self._hello_at, self._hellos = False, now, 0
            case Refuse(reason):
                yield from self._ended(Stop(ExitCode.REFUSED, f"the learner refuses this worker: {reason}"))
            case Goodbye(_, reason):
                yield from self._ended(Stop(ExitCode.DONE, f"the learner says goodbye: {reason}"))
            case Answer():
                yield from self._answered(event, now)
            case Weights():
                self.versions.add(event.version)
                yield from self.versions.release(self.tickets)
            case BuildDone(built):
                if self.state is State.BUILDING:
                    self._built, self._changed, self.state = built, True, State.PLAYING
                    self._watchdog.built()
                    yield from self._introduced()
                    yield from self._follow(self._desired, now)
            case BuildFailed(reason):
                yield from self._leave(Stop(ExitCode.ERROR, reason), now)
            case EpisodeFinished(ticket):
                yield from self.tickets.finish(ticket, now)
            case TicketFailed(failure):
                yield from self._failed(failure, now)
            case Drain():
                yield from self._drain(event, now)
            case Terminate(reason, code):
                yield from self._leave(Stop(code, reason), now)

    def _tick(self, telemetry: Telemetry, now: float) -> Iterator[Instruction]:
        before = self._silent_seconds
        # A process that was frozen did neither listen nor play, so a long pause counts little.
        elapsed, self._ticked_at = min(now - self._ticked_at, 2.0), now
        self._silent_seconds += elapsed
        limit = self.welcome.liveness_seconds if self.welcome else math.inf
        if before < limit <= self._silent_seconds:
            yield Log("warning", f"no word from the learner for {limit:g} s: playing on with what is in hand")
        if self._silent_seconds >= self._give_up_after_seconds:
            yield from self._ended(
                Stop(
                    ExitCode.GAVE_UP,
                    f"no word from a learner at {self._addresses} for {self._silent_seconds:.0f} s: is it "
                    "running, and is this the first of its ports? (its run's file `address` says)",
                )
            )
            return
        building = self.state is State.BUILDING
        if held_up := self._watchdog.heed(telemetry, elapsed, self.welcome, building, self.tickets.running):
            yield from self._leave(Stop(ExitCode.ERROR, held_up), now)
        patience = self.welcome.liveness_seconds if self.welcome and self._known else DIAL_SECONDS
        if self._addresses.silent(elapsed, patience) and self.state is not State.LEAVING:
            yield from self._dial_next("no word from a learner", now)
        if self.state is State.DRAINING and now >= self._drain_until and self.tickets.unsettled:
            reason = f"{self._drains}: the time to drain is over, {len(self.tickets.running)} tickets go back"
            yield from self._leave(Stop(ExitCode.DONE, reason), now)
        if self._known and now >= self._heartbeat_due():
            yield Send(self._heartbeat(telemetry, now))
        elif not self._known and now >= self._hello_at:
            yield from self._say_hello(now)
        for version in self._missing():
            if now >= self.versions.ask_at(version):
                self.versions.asked(version, now)
                yield Send(SnapshotRequest(self._session, version))
        settled = not self.tickets.unsettled
        if self.state is State.DRAINING and settled:
            reason = f"{self._drains}: drained" if self._drains else "drained"
            self.state, self._end, self._end_at = State.LEAVING, Stop(ExitCode.DONE, reason), now
        if self.state is State.LEAVING and (settled or now >= self._end_at):
            yield Send(Goodbye(self._session, self._end.reason, self.holdings()))
            yield from self._ended(self._end)

    def _dial_next(self, why: str, now: float) -> Iterator[Instruction]:
        """Look for the learner at its next address, and say hello there."""
        before = self._addresses.current
        self._known, self._hello_at, self._hellos = False, now, 0
        self._dials += 1
        if self._dials & (self._dials - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
            yield Log("warning", f"{why} at {before}: trying the next address")
        yield Dial(self._addresses.turn())

    def _foreign(self, event: FromLearner) -> bool:
        """Say whether this is the welcome of another run, or of a learner that has been replaced."""
        ours = self.welcome
        return (
            isinstance(event, Welcome)
            and ours is not None
            and (event.run != ours.run or event.incarnation < self.incarnation)
        )

    def _say_hello(self, now: float) -> Iterator[Instruction]:
        longest = min(HELLO_SECONDS * 2 ** min(self._hellos, 10), HELLO_MOST_SECONDS)
        pause = self._jitter.uniform(0.5, 1.0) * longest
        self._hello_at, self._hellos = now + pause, self._hellos + 1
        if self._hellos in (3, 6) or self._hellos % 20 == 0:
            yield Log("warning", f"no learner at {self._addresses} yet: waiting (retry in {pause:.1f} s)")
        yield Send(
            replace(self._hello, run=self.welcome.run if self.welcome else "", holdings=self.holdings())
        )

    def _heartbeat_due(self) -> float:
        if not (self._changed or self.tickets.changed):
            return self._heartbeat_at + (self.welcome.heartbeat_seconds if self.welcome else 1.0)
        idle = self.state is State.PLAYING and not self._hosts and self.tickets.idle > 0
        return self._heartbeat_at + (IDLE_SECONDS if idle else CHANGE_SECONDS)

    def _heartbeat(self, telemetry: Telemetry, now: float) -> Heartbeat:
        states: dict[State, Literal["building", "ready", "paused", "draining"]] = {
            State.BUILDING: "building",
            State.PLAYING: "ready",
            State.PAUSED: "paused",
        }
        self._number += 1
        heartbeat = Heartbeat(
            session=self._session,
            number=self._number,
            incarnation=self.incarnation,
            answer=self._answer,
            state=states.get(self.state, "draining"),
            holdings=self.holdings(telemetry),
            version=self.versions.newest,
            built=self._built,
            episodes=self.tickets.episodes,
            steps=telemetry.steps,
            pushes=self.tickets.pushes,
            rejected=telemetry.rejected,
            cpu_seconds=telemetry.cpu_seconds,
            resident_bytes=telemetry.resident_bytes,
            error=self._error,
        )
        self._changed = self.tickets.changed = False
        self._heartbeat_at = now
        self._passes, self._seen_running = telemetry.passes, frozenset(self.tickets.running)
        return heartbeat

    def _welcomed(self, welcome: Welcome, now: float) -> Iterator[Instruction]:
        if self.welcome is None:
            self.state = State.BUILDING if self.state is State.JOINING else self.state
            yield Log("info", f"joined run {welcome.run} (incarnation {welcome.incarnation})")
            yield Build(welcome)
        elif self._addresses.several and self._foreign(welcome):
            whose = f"incarnation {welcome.incarnation} of run {welcome.run}"
            yield from self._dial_next(f"only {whose}", now)
            return
        elif welcome.run != self.welcome.run:
            reason = f"this worker plays {self.welcome.run}, the learner {welcome.run}: start a new worker"
            yield from self._ended(Stop(ExitCode.REFUSED, reason))
            return
        elif welcome.incarnation < self.incarnation:
            self._known = self._changed = (
                True  # an older learner still lives: a heartbeat tells it that it is
            )
            return
        elif (welcome.environment, welcome.policy, welcome.mode) != (
            self.welcome.environment,
            self.welcome.policy,
            self.welcome.mode,
        ):
            reason = (
                f"run {welcome.run} has another environment, policy or mode than before: start a new worker"
            )
            yield from self._ended(Stop(ExitCode.REFUSED, reason))
            return
        else:
            yield Log("info", f"welcomed again (incarnation {welcome.incarnation})")
        if welcome.incarnation > self.incarnation:
            self.versions.follow(welcome.incarnation)
        self._answer = 0  # control keeps its order, and a learner that forgot the session counts from 1
        self.welcome, self._known, self._settling = welcome, True, True
        self._changed, self._heartbeat_at = True, -math.inf
        yield from self._introduced()
        yield from self.versions.release(self.tickets)

    def _introduced(self) -> Iterator[Instruction]:
        if self._built and self._hosts:
            yield Introduce(self.incarnation)

    def _answered(self, answer: Answer, now: float) -> Iterator[Instruction]:
        if answer.incarnation > self.incarnation:  # its welcome was lost
            self._known, self._hello_at = False, now
        if answer.incarnation != self.incarnation or answer.number <= self._answer or not self.welcome:
            return
        self._answer = answer.number
        self.versions.published(answer.version, now)
        yield from self.tickets.drop(answer.drop)
        yield from self._follow(answer.desired, now)
        if self.state is State.PLAYING:
            self.tickets.grant(answer.grants)
        # After a new welcome all episodes are pushed again, else those that may be lost by now.
        limit = -math.inf if self._settling else self.welcome.liveness_seconds
        self._settling = False
        yield from self.tickets.push(self.tickets.unacknowledged(now, limit), now)
        yield from self.versions.release(self.tickets)

    def _follow(self, desired: Literal["play", "pause", "drain"], now: float) -> Iterator[Instruction]:
        self._desired = desired = "drain" if self._drains else desired
        wanted = {"play": State.PLAYING, "pause": State.PAUSED, "drain": State.DRAINING}[desired]
        if wanted is self.state or self.state not in (State.PLAYING, State.PAUSED, State.DRAINING):
            return
        self.state, self._changed = wanted, True
        if wanted is not State.PLAYING:
            self.tickets.queued.clear()
        yield Log("info", f"{self._drains or f'the learner asks: {desired}'}; {wanted.value}")

    def _drain(self, drain: Drain, now: float) -> Iterator[Instruction]:
        """Follow this wish instead of the learner's; an earlier end stays."""
        if self.state in (State.JOINING, State.BUILDING):
            yield from self._leave(Stop(ExitCode.DONE, f"{drain.reason}: nothing to drain"), now)
        self._drains = self._drains or drain.reason
        self._drain_until = min(self._drain_until, now + drain.limit_seconds)
        yield from self._follow("drain", now)

    def _failed(self, failure: Failure, now: float) -> Iterator[Instruction]:
        if not self.tickets.fail(failure):
            return
        self._error = failure.reason
        yield Log("error", f"ticket {failure.ticket} failed: {failure.reason}")
        if (failed := self.tickets.failed_in_a_row) >= self._max_failures:
            reason = f"{failed} failures in a row, the last: {failure.reason}; its traceback is in this log"
            yield from self._leave(Stop(ExitCode.ERROR, reason), now)

    def _missing(self) -> set[int | None]:
        """Return the versions to ask for; None is the newest."""
        if self.welcome is None or self._hosts or not self._known or self.state is State.LEAVING:
            return set()
        return self.versions.missing(self.tickets)

    def _leave(self, end: Stop, now: float) -> Iterator[Instruction]:
        """Return what is unfinished, then wait for the outbox; a worker that nobody knows just ends."""
        if self.state is State.LEAVING:
            return
        if self.welcome is None:
            yield from self._ended(end)
            return
        abandoned = self.tickets.give_back()
        self.state, self._end, self._end_at = State.LEAVING, end, now + FLUSH_SECONDS
        self._error = end.reason if end.code else self._error
        self._changed, self._heartbeat_at = True, -math.inf
        if abandoned:
            yield Abandon(abandoned)
        yield Log("error" if end.code else "info", f"leaving: {end.reason}")

    def _ended(self, end: Stop) -> Iterator[Instruction]:
        self.state = State.ENDED
        yield end
