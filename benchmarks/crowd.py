"""Many workers in one process: the real membership over real sockets, playing recorded episodes.

Each worker is a `Membership` with a DEALER, a SUB and a PUSH of its own, as `rollout_worker` has them; only
the environment and the threads are left out. What it plays was played once, by a real worker's player.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from multiprocessing.connection import Connection

import zmq

import protocol
from protocol.addresses import Ports
from protocol.codec import decode, encode
from protocol.messages import Answer, Built, Episode, Heartbeat, Hello, Message, Version, Weights, Welcome
from protocol.sockets.frames import receive_nowait, send_nowait
from protocol.sockets.worker import connect_control, connect_episodes, connect_weights
from protocol.tickets import Ticket
from rollout_worker.events import (
    Abandon,
    Build,
    BuildDone,
    EpisodeFinished,
    Event,
    Forget,
    Push,
    Send,
    Start,
    Stop,
    Telemetry,
    Terminate,
    Tick,
)
from rollout_worker.membership import Membership
from rollout_worker.player import Player
from rollout_worker.policy import Policy

SOCKETS_PER_WORKER = 3
TURN_SECONDS = 0.01
"""The sockets of all workers are looked at this often: polling so many costs more than looking."""


@dataclass(slots=True)
class Counts:
    """What a crowd has seen; times are of the monotonic clock, which all processes of a host share."""

    first_hello_at: float = math.inf
    playable: int = 0
    """Workers that are ready, have been answered and hold weights."""
    playable_at: float = 0.0
    """When the last of them became so."""
    hellos: int = 0
    heartbeats: int = 0
    published: int = 0
    """Frames received on the weights sockets, and their bytes, and when the last one came."""
    published_bytes: int = 0
    published_at: float = 0.0
    snapshots: int = 0
    episodes: int = 0
    ended: int = 0
    cpu_seconds: float = 0.0


class Recorded:
    """One worker that plays recorded episodes, `episode_seconds` each."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], ports: Ports, slots: int, built: Built
    ) -> None:
        self.control = connect_control(context, "127.0.0.1", ports.control)
        self.weights = connect_weights(context, "127.0.0.1", ports.weights)
        self.episodes = connect_episodes(context, "127.0.0.1", ports.episodes)
        self.session = os.urandom(8).hex()
        hello = Hello(self.session, "crowd", os.getpid(), slots, protocol.VERSION)
        self.membership = Membership(hello, time.monotonic())
        self.built, self.run = built, ""
        self.abandoned: set[Ticket] = set()
        self.versions: dict[Ticket, Version] = {}
        self.unsent: list[Ticket] = []
        self.answered = self.playable = False
        self.passes, self.due_at = 0, 0.0


class Crowd:
    """Workers that share a process and its loop; `serve` runs until told to end."""

    def __init__(self, pipe: Connection, episodes: Sequence[Episode], built: Built) -> None:
        self._pipe, self._recorded, self._built = pipe, episodes, built
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._workers: list[Recorded] = []
        self._playing: list[tuple[float, int, Recorded, Ticket]] = []
        self._order = 0
        self._episode_seconds = math.inf
        self.counts = Counts()

    def serve(self) -> None:
        """Join, play and count as the pipe says."""
        while True:
            began = time.monotonic()
            if self._pipe.poll() and not self._obey(*self._pipe.recv()):
                return
            for worker in self._workers:
                self._listen(worker)
            self._let_time_pass(time.monotonic())
            time.sleep(max(0.0, began + TURN_SECONDS - time.monotonic()))

    def _obey(self, what: str, *given: object) -> bool:
        """Do what the benchmark asks; return whether to go on."""
        match what, given:
            case "join", (int(count), int(slots), Ports() as ports, float(episode_seconds)):
                self._episode_seconds = episode_seconds
                self._context.set(zmq.MAX_SOCKETS, SOCKETS_PER_WORKER * count + 100)
                for _ in range(count):
                    self._workers.append(Recorded(self._context, ports, slots, self._built))
            case "count", ():
                self.counts.cpu_seconds = time.process_time()
                self._pipe.send(self.counts)
            case "end", ():
                for worker in self._workers:
                    self._handle(worker, Terminate("the benchmark is over"))
                    self._send_off(worker)
                self._context.destroy(linger=200)
                return False
        return True

    def _let_time_pass(self, now: float) -> None:
        while self._playing and self._playing[0][0] <= now:
            _, _, worker, ticket = heappop(self._playing)
            if ticket in worker.abandoned:
                worker.abandoned.discard(ticket)
            else:
                self.counts.episodes += 1
                self._handle(worker, EpisodeFinished(ticket))
        for worker in self._workers:
            if worker.due_at <= now:
                worker.passes += 1
                self._handle(worker, Tick(Telemetry(passes=worker.passes)))

    def _listen(self, worker: Recorded) -> None:
        for socket in (worker.control, worker.weights):
            while (received := receive_nowait(socket)) is not None:
                message = decode(received[1])
                self._count(worker, socket is worker.weights, message, len(received[1]))
                if isinstance(message, Welcome):
                    worker.run = message.run
                if not isinstance(message, Weights) or worker.run:
                    self._handle(worker, message)  # type: ignore[arg-type]  # a learner sends nothing else

    def _count(self, worker: Recorded, published: bool, message: Message, size_bytes: int) -> None:
        if isinstance(message, Weights) and published:
            self.counts.published += 1
            self.counts.published_bytes += size_bytes
            self.counts.published_at = time.monotonic()
        elif isinstance(message, Weights):
            self.counts.snapshots += 1
        worker.answered |= isinstance(message, Answer)

    def _handle(self, worker: Recorded, event: Event) -> None:
        now = time.monotonic()
        for instruction in worker.membership.handle(event, now):
            match instruction:
                case Send(message):
                    sent = send_nowait(worker.control, encode(message))
                    self.counts.heartbeats += sent and isinstance(message, Heartbeat)
                    if sent and isinstance(message, Hello):
                        self.counts.hellos += 1
                        self.counts.first_hello_at = min(self.counts.first_hello_at, now)
                case Build():
                    self._handle(worker, BuildDone(worker.built))
                case Start(ticket, version):
                    worker.versions[ticket] = version
                    self._order += 1
                    heappush(self._playing, (now + self._lasts(ticket), self._order, worker, ticket))
                case Abandon(tickets):
                    worker.abandoned.update(tickets)
                case Push(tickets):
                    worker.unsent += tickets
                case Forget(tickets):
                    for ticket in tickets:
                        worker.versions.pop(ticket, None)
                case Stop():
                    self.counts.ended += 1
        self._send_off(worker)
        if not worker.playable and worker.answered and worker.membership.versions.held:
            worker.playable = True
            self.counts.playable, self.counts.playable_at = self.counts.playable + 1, now
        worker.due_at = worker.membership.next_tick(now)

    def _lasts(self, ticket: Ticket) -> float:
        """Return an episode's seconds: they differ, or all would end at once for ever."""
        return self._episode_seconds * (0.5 + (ticket.number * 0.618034) % 1.0)

    def _send_off(self, worker: Recorded) -> None:
        while worker.unsent:
            ticket = worker.unsent[0]
            version = worker.versions.get(ticket)
            if version is not None:
                recorded = self._recorded[ticket.number % len(self._recorded)]
                episode = replace(
                    recorded, run=worker.run, session=worker.session, ticket=ticket, version=version
                )
                if not send_nowait(worker.episodes, encode(episode)):
                    return
            worker.unsent.pop(0)


def serve_crowd(pipe: Connection, episodes: Sequence[Episode], built: Built) -> None:
    """Be a crowd: what a process of it runs."""
    Crowd(pipe, episodes, built).serve()


def record(player: Player, policy: Policy, count: int) -> list[Episode]:
    """Return so many episodes, played for real."""

    def play() -> Iterator[Episode]:
        started = 0
        while True:
            while player.idle:
                player.start(Ticket("train", started), Version(1, 0), policy)
                started += 1
            yield from (ended for ended in player.advance() if isinstance(ended, Episode))

    episodes = play()
    return [next(episodes) for _ in range(count)]
