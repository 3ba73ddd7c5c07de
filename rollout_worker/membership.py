"""A worker's life as one pure state machine: events in, instructions out; no socket, clock or thread inside.

    JOINING --Welcome--> BUILDING --BuildDone--> PLAYING <--desired--> PAUSED, DRAINING
    any state --Terminate, Refuse, Goodbye, silence, an environment that hangs--> LEAVING or ENDED

The machine owns the `Tickets`, each in exactly one place, and the `Versions` that they begin under. Every
heartbeat states all tickets, so a lost message costs a second, not a ticket. The caller gives a monotonic
`now` with each event and a `Tick` no later than `next_tick` says, and does in order what comes back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from protocol.messages import Answer, Failure, Goodbye, Hello, HelloAgain, Refuse, Weights, Welcome
from rollout_worker.contact import Contact
from rollout_worker.events import (
    Abandon,
    Build,
    BuildDone,
    BuildFailed,
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
from rollout_worker.heartbeats import Heartbeats
from rollout_worker.tickets import Tickets
from rollout_worker.versions import Versions
from rollout_worker.watchdog import Watchdog

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
        self.versions = Versions(hello.session, now)
        self._hello, self._max_failures = hello, max_failures
        self._contact = Contact(hello.session, addresses, give_up_after_seconds, now)
        self._heartbeats = Heartbeats(hello.session, now)
        self._watchdog = Watchdog()
        self._answer = 0
        """Number of the last answer seen."""
        self._settling = False
        """Whether the learner may not have what was pushed before its welcome."""
        self._desired: Literal["play", "pause", "drain"] = "play"
        self._end, self._end_at = Stop(ExitCode.DONE, ""), math.inf
        self._drains = ""
        """Why this worker drains of its own accord, whatever the learner desires."""
        self._drain_until = math.inf

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take one event in; return what is to be done, in order."""
        if self.state is State.ENDED:
            return []
        if isinstance(event, FromLearner) and not self._foreign(event):
            self._contact.heard()
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

    @property
    def _asks(self) -> bool:
        """Say whether this worker asks for the weights that it lacks."""
        return self._contact.known and not self._hosts and self.state is not State.LEAVING

    def next_tick(self, now: float) -> float:
        """Return the time of the next Tick at the latest."""
        if self.state is State.ENDED:
            return math.inf
        times = [now + 1.0, self._end_at, self._report_at]
        times += [self._drain_until] if self.state is State.DRAINING else []
        times += [self.versions.ask_at(self.tickets)] if self._asks else []
        return min(times)

    def _react(self, event: Event, now: float) -> Iterator[Instruction]:
        match event:
            case Tick(telemetry):
                yield from self._tick(telemetry, now)
            case Welcome():
                yield from self._welcomed(event, now)
            case HelloAgain():
                self._contact.lose(now)
            case Refuse(reason):
                yield from self._ended(Stop(ExitCode.REFUSED, f"the learner refuses this worker: {reason}"))
            case Goodbye(_, reason):
                yield self._goodbye("the learner said goodbye")
                yield from self._ended(Stop(ExitCode.DONE, f"the learner says goodbye: {reason}"))
            case Answer():
                yield from self._answered(event, now)
            case Weights():
                self.versions.add(event.version)
                yield from self.versions.release(self.tickets)
            case BuildDone(built):
                if self.state is State.BUILDING:
                    self._heartbeats.built, self._heartbeats.changed = built, True
                    self.state = State.PLAYING
                    self._watchdog.built()
                    yield from self._introduced()
                    yield from self._follow(self._desired)
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
        contact, running, building = self._contact, self.tickets.running, self.state is State.BUILDING
        yield from contact.tick(now)
        if given_up := contact.given_up():
            yield from self._ended(Stop(ExitCode.GAVE_UP, given_up))
            return
        held_up = self._watchdog.heed(telemetry, contact.elapsed_seconds, self.welcome, building, running)
        if held_up:
            yield from self._leave(Stop(ExitCode.ERROR, held_up), now)
        if contact.missed() and self.state is not State.LEAVING:
            yield from contact.dial_next("no word from a learner", now)
        if self.state is State.DRAINING and now >= self._drain_until and self.tickets.unsettled:
            reason = f"{self._drains}: the time to drain is over, {len(running)} tickets go back"
            yield from self._leave(Stop(ExitCode.DONE, reason), now)
        if now >= self._report_at:
            yield from self._report(telemetry, now)
        if self._asks:
            yield from self.versions.ask(self.tickets, now)
        settled = not self.tickets.unsettled
        if self.state is State.DRAINING and settled:
            reason = f"{self._drains}: drained" if self._drains else "drained"
            self.state, self._end, self._end_at = State.LEAVING, Stop(ExitCode.DONE, reason), now
        if self.state is State.LEAVING and (settled or now >= self._end_at):
            yield self._goodbye(self._end.reason)
            yield from self._ended(self._end)

    def _foreign(self, event: FromLearner) -> bool:
        """Say whether this is the welcome of another run, or of a learner that has been replaced."""
        if self.welcome is None or not isinstance(event, Welcome):
            return False
        return event.run != self.welcome.run or event.incarnation < self.incarnation

    @property
    def _report_at(self) -> float:
        """Return when to send the next heartbeat, or the next hello."""
        if not self._contact.known:
            return self._contact.hello_at
        idle = self.state is State.PLAYING and not self._hosts and self.tickets.idle > 0
        return self._heartbeats.due_at(self.tickets, idle=idle)

    def _report(self, telemetry: Telemetry, now: float) -> Iterator[Instruction]:
        tickets, versions = self.tickets, self.versions
        if self._contact.known:
            yield Send(self._heartbeats.beat(self.state, self._answer, tickets, versions, telemetry, now))
        else:
            run = self.welcome.run if self.welcome else ""
            yield from self._contact.greet(replace(self._hello, run=run, holdings=tickets.holdings()), now)

    def _welcomed(self, welcome: Welcome, now: float) -> Iterator[Instruction]:
        if self.welcome is None:
            self.state = State.BUILDING if self.state is State.JOINING else self.state
            yield Log("info", f"joined run {welcome.run} (incarnation {welcome.incarnation})")
            yield Build(welcome)
        elif self._contact.several and self._foreign(welcome):
            other = f"only incarnation {welcome.incarnation} of run {welcome.run}"
            yield from self._contact.dial_next(other, now)
            return
        elif welcome.run == self.welcome.run and welcome.incarnation < self.incarnation:
            # An older learner still lives: a heartbeat tells it that it is.
            self._contact.known = self._heartbeats.changed = True
            return
        elif objection := _objection(self.welcome, welcome):
            yield from self._ended(Stop(ExitCode.REFUSED, f"{objection}: start a new worker"))
            return
        else:
            yield Log("info", f"welcomed again (incarnation {welcome.incarnation})")
        if welcome.incarnation > self.incarnation:
            self.versions.follow(welcome.incarnation)
        self._answer = 0  # control keeps its order, and a learner that forgot the session counts from 1
        self.welcome, self._contact.known, self._settling = welcome, True, True
        self._contact.liveness_seconds = welcome.liveness_seconds
        self._heartbeats.period_seconds = welcome.heartbeat_seconds
        self._heartbeats.hurry()
        yield from self._introduced()
        yield from self.versions.release(self.tickets)

    def _introduced(self) -> Iterator[Instruction]:
        if self._heartbeats.built and self._hosts:
            yield Introduce(self.incarnation)

    def _answered(self, answer: Answer, now: float) -> Iterator[Instruction]:
        if answer.incarnation > self.incarnation:  # its welcome was lost
            self._contact.known, self._contact.hello_at = False, now
        if answer.incarnation != self.incarnation or answer.number <= self._answer or not self.welcome:
            return
        self._answer = answer.number
        self.versions.published(answer.version, now)
        yield from self.tickets.drop(answer.drop)
        yield from self._follow(answer.desired)
        if self.state is State.PLAYING:
            self.tickets.grant(answer.grants)
        # After a new welcome all episodes are pushed again, else those that may be lost by now.
        limit = -math.inf if self._settling else self.welcome.liveness_seconds
        self._settling = False
        yield from self.tickets.push(self.tickets.unacknowledged(now, limit), now)
        yield from self.versions.release(self.tickets)

    def _follow(self, desired: Literal["play", "pause", "drain"]) -> Iterator[Instruction]:
        self._desired = desired = "drain" if self._drains else desired
        wanted = {"play": State.PLAYING, "pause": State.PAUSED, "drain": State.DRAINING}[desired]
        if wanted is self.state or self.state not in (State.PLAYING, State.PAUSED, State.DRAINING):
            return
        self.state, self._heartbeats.changed = wanted, True
        if wanted is not State.PLAYING:
            self.tickets.queued.clear()
        yield Log("info", f"{self._drains or f'the learner asks: {desired}'}; {wanted.value}")

    def _drain(self, drain: Drain, now: float) -> Iterator[Instruction]:
        """Follow this wish instead of the learner's; an earlier end stays."""
        if self.state in (State.JOINING, State.BUILDING):
            yield from self._leave(Stop(ExitCode.DONE, f"{drain.reason}: nothing to drain"), now)
        self._drains = self._drains or drain.reason
        self._drain_until = min(self._drain_until, now + drain.limit_seconds)
        yield from self._follow("drain")

    def _failed(self, failure: Failure, now: float) -> Iterator[Instruction]:
        if not self.tickets.fail(failure):
            return
        self._heartbeats.error = failure.reason
        yield Log("error", f"ticket {failure.ticket} failed: {failure.reason}")
        if (failed := self.tickets.failed_in_a_row) >= self._max_failures:
            reason = f"{failed} failures in a row, the last: {failure.reason}; its traceback is in this log"
            yield from self._leave(Stop(ExitCode.ERROR, reason), now)

    def _leave(self, end: Stop, now: float) -> Iterator[Instruction]:
        """Return what is unfinished, then wait for the outbox; a worker that nobody knows just ends."""
        if self.state is State.LEAVING:
            return
        if self.welcome is None:
            yield from self._ended(end)
            return
        abandoned = self.tickets.give_back()
        self.state, self._end, self._end_at = State.LEAVING, end, now + FLUSH_SECONDS
        if end.code:
            self._heartbeats.error = end.reason
        self._heartbeats.hurry()
        if abandoned:
            yield Abandon(abandoned)
        yield Log("error" if end.code else "info", f"leaving: {end.reason}")

    def _goodbye(self, reason: str) -> Send:
        return Send(Goodbye(self._hello.session, reason, self.tickets.holdings()))

    def _ended(self, end: Stop) -> Iterator[Instruction]:
        self.state = State.ENDED
        yield end


def _objection(ours: Welcome, theirs: Welcome) -> str:
    """Return why a worker of one run cannot follow a welcome, "" where it can."""
    if theirs.run != ours.run:
        return f"this worker plays {ours.run}, the learner {theirs.run}"
    before, after = ((w.environment, w.policy, w.mode) for w in (ours, theirs))
    return "" if before == after else f"run {ours.run} has another environment, policy or mode than before"
