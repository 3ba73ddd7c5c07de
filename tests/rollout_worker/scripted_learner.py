"""A learner in one thread that does what a test tells it, over real sockets with the real codec."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import zmq

from protocol.addresses import Ports
from protocol.codec import decode, encode
from protocol.errors import ProtocolError
from protocol.messages import (
    Answer,
    Arrays,
    Episode,
    Failure,
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    HelloAgain,
    Holdings,
    SnapshotRequest,
    TicketRanges,
    ToWorker,
    Version,
    Weights,
    Welcome,
)
from protocol.ranges import IntervalSet, to_ranges
from protocol.sockets.frames import receive_nowait, send_nowait
from protocol.sockets.learner import LearnerSockets, bind_learner
from protocol.specs import EnvironmentSpec, PolicySpec
from protocol.step_messages import Present, SlotReset, Step, Stepped


@dataclass
class Session:
    """A worker as this learner knows it."""

    identity: bytes
    hello: Hello
    answers: int = 0
    heartbeat: Heartbeat | None = None
    heartbeats: int = 0


def numbers(ranges: TicketRanges) -> set[int]:
    return set(IntervalSet.from_ranges(ranges.get("train", ())))


def made_up_weights(spec: PolicySpec, version: int = 0) -> Arrays:
    draw = np.random.default_rng(version)
    return {name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in spec.shapes().items()}


@dataclass
class ScriptedLearner:
    """Grants two train tickets for each slot, and settles what comes back; `until` runs it.

    In sync mode it grants nothing: a test orders steps, and looks at `presents` and `answers`.
    """

    environment: EnvironmentSpec
    policy: PolicySpec
    mode: Literal["async", "sync"] = "async"
    run: str = "scripted"
    incarnation: int = 1
    ports: Ports | None = None
    tickets: int = 1_000_000
    """No ticket from this number on is issued."""
    version: int = 0
    exact: bool = False
    desired: Literal["play", "pause", "drain"] = "play"
    heartbeat_seconds: float = 0.2
    liveness_seconds: float = 1.0
    stuck_after_seconds: float = 60.0
    keep_episodes: bool = True
    sessions: dict[str, Session] = field(default_factory=dict)
    episodes: dict[int, Episode] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    goodbyes: list[Goodbye] = field(default_factory=list)
    received: IntervalSet = field(default_factory=IntervalSet)
    duplicates: int = 0
    steps: int = 0
    snapshots: list[int | None] = field(default_factory=list)
    returned: set[int] = field(default_factory=set)
    next_ticket: int = 0
    presents: list[Present] = field(default_factory=list)
    answers: list[Stepped] = field(default_factory=list)
    steps_ordered: int = 0

    def __post_init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sockets: LearnerSockets = bind_learner(self.context, "127.0.0.1", self.ports)
        self.ports = self.sockets.ports
        self.poller = zmq.Poller()
        self.poller.register(self.sockets.control, zmq.POLLIN)
        self.poller.register(self.sockets.episodes, zmq.POLLIN)
        self.poller.register(self.sockets.step, zmq.POLLIN)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.sockets.ports.control}"

    def close(self) -> None:
        self.sockets.__exit__(None, None, None)
        self.context.destroy(linger=0)

    def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Serve until the condition holds; fail after so many seconds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s; sessions: {self.sessions}, {self.received}")
            self.serve(0.02)

    def serve(self, seconds: float) -> None:
        """Handle what has arrived, waiting at most so long for it."""
        self.poller.poll(int(seconds * 1000))
        while (received := receive_nowait(self.sockets.episodes)) is not None:
            self.take(decode(received[1]))
        while (received := receive_nowait(self.sockets.step)) is not None:
            self.hear(*received)
        while (received := receive_nowait(self.sockets.control)) is not None:
            identity, frame = received
            try:
                self.handle(identity, decode(frame))
            except ProtocolError as error:
                raise AssertionError(f"the worker sent a bad frame: {error}") from error

    def take(self, episode: object) -> None:
        assert isinstance(episode, Episode)
        number = episode.ticket.number
        if number in self.received:
            self.duplicates += 1
            return
        self.received.add(number)
        self.returned.discard(number)
        self.steps += episode.length
        if self.keep_episodes:
            self.episodes[number] = episode

    def hear(self, identity: bytes, frame: bytes) -> None:
        message = decode(frame)
        assert isinstance(message, Present | Stepped) and message.session.encode() == identity
        if isinstance(message, Present):
            self.presents.append(message)
        else:
            self.answers.append(message)

    def order(
        self, actions: Mapping[int, int], *resets: SlotReset, number: int = 0, incarnation: int = 0
    ) -> Step:
        """Send a step to the worker that was present last."""
        self.steps_ordered += 1
        slots, taken = np.array(list(actions), np.int32), np.array(list(actions.values()), np.int64)
        step = Step(incarnation or self.incarnation, number or self.steps_ordered, slots, taken, resets)
        self.order_again(step)
        return step

    def order_again(self, step: Step) -> None:
        self.sockets.step.send_multipart([self.presents[-1].session.encode(), encode(step)])

    def ask(self, actions: Mapping[int, int], *resets: SlotReset) -> Stepped:
        """Send a step and return its answer."""
        step = self.order(actions, *resets)
        self.until(lambda: self.answers and self.answers[-1].number == step.number)
        assert self.answers[-1].incarnation == step.incarnation
        return self.answers[-1]

    def handle(self, identity: bytes, message: object) -> None:
        match message:
            case Hello():
                self.sessions[message.session] = Session(identity, message)
                self.send(identity, self.welcome())
                self.answer(self.sessions[message.session], message.holdings)
            case Heartbeat() if message.session in self.sessions:
                session = self.sessions[message.session]
                session.heartbeat, session.heartbeats = message, session.heartbeats + 1
                self.failures += [f for f in message.holdings.failures if f not in self.failures]
                self.answer(session, message.holdings)
            case Heartbeat():
                self.send(identity, HelloAgain())
            case SnapshotRequest(_, version):
                self.snapshots.append(version)
                self.send(identity, self.weights(self.version if version is None else version))
            case Goodbye():
                self.goodbyes.append(message)
                self.sessions.pop(message.session, None)
            case _:
                raise AssertionError(f"unexpected {message}")

    def answer(self, session: Session, holdings: Holdings) -> None:
        """Settle what is received or failed; grant up to two tickets for each slot of a ready worker."""
        failed = {failure.ticket.number for failure in holdings.failures}
        settled = {n for n in numbers(holdings.outbox) if n in self.received} | failed
        plays = self.mode == "async"
        ready = plays and session.heartbeat is not None and session.heartbeat.state == "ready"
        self.returned -= numbers(holdings.queued) | numbers(holdings.running) | numbers(holdings.outbox)
        grants: list[Grant] = []
        if ready and session.heartbeat is not None and session.heartbeat.answer == session.answers:
            held = len(numbers(holdings.queued) | numbers(holdings.running))
            for number in self.issue(2 * session.hello.slots - held):
                if grants and grants[-1].stop == number:
                    grants[-1] = Grant("train", grants[-1].start, number + 1, grants[-1].version, self.exact)
                else:
                    grants.append(
                        Grant("train", number, number + 1, self.version if self.exact else 0, self.exact)
                    )
        session.answers += 1
        drop: TicketRanges = {"train": to_ranges(settled)} if settled else {}
        self.send(
            session.identity,
            Answer(self.incarnation, session.answers, self.version, drop, tuple(grants), self.desired),
        )

    def issue(self, count: int) -> list[int]:
        """Return the numbers of up to `count` tickets: returned ones first, then new ones."""
        again = sorted(self.returned)[: max(count, 0)]
        self.returned.difference_update(again)
        new = range(self.next_ticket, min(self.next_ticket + max(count - len(again), 0), self.tickets))
        self.next_ticket = max(self.next_ticket, new.stop)
        return [*again, *new]

    def lose_everyone(self) -> None:
        """Declare all workers lost: what they hold is issued again."""
        self.sessions.clear()
        self.returned = set(range(self.next_ticket)) - set(self.received)

    def publish(self, version: int) -> None:
        self.version = version
        self.sockets.weights.send(encode(self.weights(version)))

    def welcome(self) -> Welcome:
        return Welcome(
            run=self.run,
            run_seed=7,
            incarnation=self.incarnation,
            mode=self.mode,
            environment=self.environment,
            policy=self.policy,
            heartbeat_seconds=self.heartbeat_seconds,
            liveness_seconds=self.liveness_seconds,
            stuck_after_seconds=self.stuck_after_seconds,
        )

    def weights(self, version: int) -> Weights:
        arrays = made_up_weights(self.policy, version)
        return Weights(self.run, Version(self.incarnation, version), self.policy.fingerprint(), arrays)

    def send(self, identity: bytes, message: ToWorker) -> None:
        send_nowait(self.sockets.control, identity, encode(message))

    def heartbeat(self) -> Heartbeat | None:
        """Return the last heartbeat of the only worker."""
        return next((session.heartbeat for session in self.sessions.values()), None)

    def ready(self) -> bool:
        heartbeat = self.heartbeat()
        return heartbeat is not None and heartbeat.state == "ready"
