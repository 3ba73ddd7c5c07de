"""What comes in over control and episodes: read, decoded, and passed on to whom it concerns."""

from __future__ import annotations

import time

from learner.access import Access
from learner.connections import Connections
from learner.episode_fault import episode_fault
from learner.ledger import Delivery
from learner.queries import Queries
from learner.registry import Registry
from protocol.codec import decode, encode
from protocol.errors import ProtocolError
from protocol.messages import (
    Command,
    Episode,
    Goodbye,
    Heartbeat,
    Hello,
    LogLines,
    LogRequest,
    Query,
    Report,
    SnapshotRequest,
)

MOST_FRAMES_PER_TURN = 500
"""Of each socket, so that a flood on one cannot starve the others."""
QUESTION_FRAMES = 20
"""How many frames of a worker key's budget a question is worth, beside its own."""


class Reception:
    """Reads for the I/O thread; `access` says what each key may do, where there are keys."""

    def __init__(
        self, registry: Registry, connections: Connections, queries: Queries, access: Access | None
    ) -> None:
        self._registry, self._connections, self._queries = registry, connections, queries
        self._access, self._spaces = access, registry.welcome.environment.spaces
        self.episodes = 0
        """First copies of train episodes in this life."""
        self.evaluated = 0
        """The same of evaluate episodes."""

    def read_control(self, now: float) -> bool:
        """Take in what workers say; return whether nothing is left unread."""
        for _ in range(MOST_FRAMES_PER_TURN):
            received = self._connections.receive("control", now)
            if received is None:
                return True
            identity, frame, key = received
            try:
                message = decode(frame)
                self._connections.bind(message, identity, key)
            except ProtocolError as error:
                self._connections.reject("control", error, key)
                continue
            if not isinstance(message, Query | Command | LogRequest):
                self._connections.traffic.count(frame)
            match message:
                case Hello():
                    self._registry.membership.hello(message, now, key)
                case Heartbeat():
                    self._registry.membership.heartbeat(message, now)
                case SnapshotRequest():
                    self._registry.snapshot_request(message, now)
                case Goodbye():
                    self._registry.membership.goodbye(message, now)
                case LogLines():
                    self._queries.log_lines(message)
                case Query() | Command() | LogRequest():
                    self._take_question(message, identity, key, now)
                case _:
                    foreign = ProtocolError(f"a {type(message).__name__} is not for a learner")
                    self._connections.reject("control", foreign, key)
        return False

    def read_episodes(self, now: float) -> None:
        """Take in the episodes that have come."""
        for _ in range(MOST_FRAMES_PER_TURN):
            received = self._connections.receive("episodes", now)
            if received is None:
                return
            key = received[2]
            self._connections.traffic.count(received[1])
            try:
                message = decode(received[1])
                if not isinstance(message, Episode):
                    raise ProtocolError(f"a {type(message).__name__} is no episode")
                if self._registry.welcome.mode == "sync":
                    raise ProtocolError("in synchronous mode the learner builds the episodes itself")
            except ProtocolError as error:
                self._connections.reject("episodes", error, key)
                continue
            self.deliver(message, key)

    def deliver(self, episode: Episode, key: str = "") -> None:
        """Take an episode in, of this key where there are keys."""
        if self._access and key and (foreign := self._registry.foreign(episode, key)):
            error = ProtocolError(f"episode {episode.ticket} of key {self._access.name(key)}: {foreign}")
            self._connections.reject("episodes", error, key, "episode of another key's ticket")
            return
        fault = episode_fault(episode, self._spaces)
        delivery = self._registry.episode(episode, fault)
        if delivery is Delivery.FIRST and self._access and key:
            self._access.useful(key, "episodes", time.monotonic())
        if delivery is Delivery.INVALID:
            fault = fault or f"it is of run {episode.run}, or its ticket was never issued"
            self._connections.reject(
                "episodes", ProtocolError(f"episode {episode.ticket}: {fault}"), key, "invalid episode"
            )
        elif delivery is Delivery.FIRST and episode.ticket.sequence == "train":
            self.episodes += 1
        elif delivery is Delivery.FIRST:
            self.evaluated += 1

    def _take_question(
        self, message: Query | Command | LogRequest, identity: bytes, key: str, now: float
    ) -> None:
        """Take in what is asked, if this key may ask it."""
        if self._access:
            operator = self._access.commands(key)
            if not operator:
                self._access.conduct.charge(key, "control", QUESTION_FRAMES)
            if not operator and not isinstance(message, Query):
                self._access.offend(key, "command of a worker's key", now)
                refusal = f"the key {self._access.name(key)} is a worker's: only an operator's may do this"
                what = "command" if isinstance(message, Command) else "log"
                self._connections.answer(identity, encode(Report(what, {"error": refusal})))
                return
        self._queries.take_in(message, identity, now)
