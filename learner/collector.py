"""The learner's I/O thread: owns the sockets, the registry and every received episode.

Closed batches go one way, to the trainer, and new versions the other, so a long update never stops a
heartbeat. The trainer's thread calls the public methods; each becomes a small task that the I/O thread runs.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import zmq

from learner.access import Access
from learner.attention import Attention
from learner.connections import Connections
from learner.descriptors import with_room
from learner.episode_fault import episode_fault
from learner.evaluation_requests import Evaluation
from learner.instructions import Log, Misconduct, Send, SendSnapshot, StopRun, one_line
from learner.ledger import Delivery
from learner.mailbox import Mailbox, RunStopped, take
from learner.queries import Queries
from learner.registry import Registry
from learner.status import FleetStatus
from protocol.codec import decode, encode
from protocol.errors import ProtocolError
from protocol.messages import (
    Arrays,
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
    ToWorker,
    Version,
    Weights,
)
from protocol.sockets.learner import LearnerSockets

logger = logging.getLogger(__name__)
T = TypeVar("T")

TURN_MILLISECONDS = 20
"""Longest wait of a turn that finds nothing to do."""
PAUSE_MILLISECONDS = 4
"""Between two turns, but for what the trainer asks: what comes meanwhile shares the next one, and tickets are
dealt no more often anyhow."""
MOST_FRAMES_PER_TURN = 500
"""Of each socket, so that a flood on one cannot starve the others."""
VIEW_SECONDS = 0.2
"""Age at which the picture for the display is renewed."""
LEAVE_TAKING_SECONDS = 2.0
"""How long the workers' goodbyes may take at the end of a run: a way through a tunnel is long."""
QUESTION_FRAMES = 20
"""How many frames of a worker key's budget a question is worth, beside its own."""
REOPEN_PAUSE_SECONDS = 60.0
"""Between two closings of all connections for the sake of who is expelled."""


@dataclass(frozen=True, slots=True)
class View:
    """What the trainer's thread may see of the I/O thread's state."""

    status: FleetStatus
    evaluated: int
    """First copies of evaluate episodes."""
    rejected: int
    """Frames that were no valid message."""


class Collector:
    """Collects episodes from `__enter__` to `__exit__`; `registry` is the I/O thread's from then on.

    `access` says whose frames are looked at where the sockets speak CURVE, and only there.
    """

    def __init__(self, registry: Registry, sockets: LearnerSockets, access: Access | None = None) -> None:
        self._registry, self._sockets, self._access = registry, sockets, access
        self._run, self._spaces = registry.welcome.run, registry.welcome.environment.spaces
        self._mode = registry.welcome.mode
        self._fingerprint = registry.welcome.policy.fingerprint()
        self._welcome = b""
        self._frames: dict[int, bytes] = {}
        self._connections = Connections(sockets, access, registry.roster.belongs)
        self._mailbox = Mailbox()
        self._poller = zmq.Poller()
        self._attention = Attention(registry.config.liveness_seconds, time.monotonic())
        self._reopen_due, self._may_reopen_at = False, -math.inf
        self._batches: queue.SimpleQueue[list[Episode] | BaseException] = queue.SimpleQueue()
        self._evaluations: queue.SimpleQueue[Evaluation | BaseException] = queue.SimpleQueue()
        self._episodes = self._evaluated = 0
        self._began_issuing = self._issued_all = math.nan
        """When the first train ticket and when the last was issued; NaN while it is not."""
        self.progress: Mapping[str, Any] | None = None
        """What the trainer's thread tells an operator, in plain values."""
        self._queries = Queries(registry, self._figures)
        self.view = self._picture(time.monotonic())
        self._thread = threading.Thread(target=self._main, name="collector", daemon=True)

    def __enter__(self) -> Collector:
        """Begin to collect."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the I/O thread and close the wake-up sockets; the learner's sockets stay with their owner."""
        self._mailbox.end()
        self._thread.join()
        self._mailbox.close()

    # For the trainer's thread

    def inherit(self, version: int, arrays: Arrays) -> None:
        """Hold the weights of a version that is not new: those a run begins or goes on with."""
        self._mailbox.ask(lambda: self._keep(version, arrays)).result()

    def publish(self, version: int, arrays: Arrays) -> None:
        """Make these weights, of the update just done, the newest."""

        def task() -> None:
            self._registry.publish(version)
            self._keep(version, arrays)

        self._mailbox.ask(task).result()

    def next_batch(self, timeout_seconds: float) -> list[Episode] | None:
        """Return the next closed batch by ticket, or None in time; raises what ended the I/O thread."""
        return take(self._batches, timeout_seconds)

    def note_waiting(self) -> None:
        """Note that the trainer has nothing to do but to wait for episodes."""
        self._registry.load.waits(time.monotonic())

    def note_working(self) -> None:
        """Note that the trainer has what it waited for."""
        self._registry.load.works(time.monotonic())

    @property
    def episodes_received(self) -> int:
        """Return how many first copies of train episodes have arrived in this life, to this moment."""
        return self._episodes

    def measured(self) -> dict[str, float]:
        """Return what has added up in this process: its CPU time, and what went over its sockets."""
        return {
            "cpu_seconds": time.process_time(),
            "messages": self._connections.traffic.messages,
            "bytes": self._connections.traffic.size_bytes,
        }

    def snapshot(self) -> dict[str, Any]:
        """Return the registry's state for a checkpoint, of the newest version published."""
        return self._mailbox.ask(self._registry.snapshot).result()

    def request_evaluation(self, version: int, episodes: int, arrays: Arrays | None = None) -> range:
        """Ask for fresh episodes under exactly this version; `next_evaluation` returns them.

        `arrays` are its weights, where it is none of those that are held anyway.
        """

        def task() -> range:
            numbers = self._registry.request_evaluation(version, episodes)
            if arrays is not None:
                self._keep(version, arrays)
            return numbers

        return self._mailbox.ask(task).result()

    def next_evaluation(self, timeout_seconds: float) -> Evaluation | None:
        """Return a finished evaluation, or None in time; raises what ended the I/O thread."""
        return take(self._evaluations, timeout_seconds)

    def finish(self, reason: str) -> None:
        """Tell every worker that the run is over, and leave them a moment to go."""
        self._mailbox.ask(lambda: self._registry.finish(reason)).result()
        deadline = time.monotonic() + LEAVE_TAKING_SECONDS
        while time.monotonic() < deadline and self._mailbox.ask(self._anyone_here).result():
            time.sleep(TURN_MILLISECONDS / 1000)

    # The I/O thread

    def _main(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            if not isinstance(error, RunStopped):
                logger.exception("the I/O thread failed")
            self._mailbox.fail(error)
            self._batches.put(error)
            self._evaluations.put(error)
        self._mailbox.answer()

    def _loop(self) -> None:
        pause = zmq.Poller()
        pause.register(self._mailbox.bell, zmq.POLLIN)
        office = self._registry.office
        self._listen()
        while not self._mailbox.over:
            self._poller.poll(TURN_MILLISECONDS)
            self._mailbox.answer()
            now = time.monotonic()
            drained = self._attention.heard_everyone(self._read_control(now), now)
            self._read_episodes(now)
            self._carry_out(now, drained)
            self._answer_queries(now)
            if self._access:
                self._watch_over(self._access, now)
            while (batch := office.batches.take()) is not None:
                self._batches.put(batch)
            while (evaluation := office.evaluations.take()) is not None:
                self._evaluations.put(evaluation)
            self._look_round(now)
            pause.poll(PAUSE_MILLISECONDS)

    def _listen(self) -> None:
        self._poller = zmq.Poller()
        for socket in (self._sockets.control, self._sockets.episodes, self._mailbox.bell):
            self._poller.register(socket, zmq.POLLIN)

    def _watch_over(self, access: Access, now: float) -> None:
        """Carry out what the list of keys and the conduct of their owners bring about."""
        if changes := access.read_again(now):
            for key in changes.revoked:
                self._registry.membership.expel(key.public, f"the key {key.name} was revoked", now)
            if changes.reopen:
                self._reopen_due, self._may_reopen_at = True, now
        for public, why in access.conduct.take_verdicts():
            access.expel(public)
            logger.warning("key %s is expelled: %s", access.name(public), why)
            self._registry.membership.expel(public, f"its key is expelled: {why}", now)
            self._reopen_due = True
        if self._reopen_due and now >= self._may_reopen_at:
            self._reopen_due, self._may_reopen_at = False, now + REOPEN_PAUSE_SECONDS
            self._carry_out(now, drained=False)  # what who is expelled is to be told
            self._reopen(now)

    def _reopen(self, now: float) -> None:
        """Close all connections, because ZeroMQ cannot close one, having read what is there."""
        self._read_control(now)
        self._answer_queries(now)
        self._read_episodes(now)
        with_room(lambda: self._sockets.reopen("control", "weights", "episodes"))
        self._reopen_step()
        self._listen()
        logger.info("closed all connections: those who are let in come back by themselves")

    def _reopen_step(self) -> None:
        with_room(lambda: self._sockets.reopen("step"))

    def _look_round(self, now: float) -> None:
        """At the end of a turn, leave a picture for the trainer's thread where the last one is old."""
        account, config = self._registry.ledger.accounts["train"], self._registry.config
        if account.issued and math.isnan(self._began_issuing):
            self._began_issuing = now
        replaced = account.discards if config.order == "arrival" else 0
        if account.issued - replaced >= config.total_episodes and math.isnan(self._issued_all):
            self._issued_all = now
        if now - self._viewed_at >= max(VIEW_SECONDS, self._registry.round_seconds):
            for session in [
                name for name in self._connections.identities if not self._registry.roster.knows(name)
            ]:
                del self._connections.identities[session]
            if self._access:
                here = Counter(session.key for session in self._registry.roster.live())
                self._access.conduct.count_sessions(here)
            self.view = self._picture(now)

    def _read_control(self, now: float) -> bool:
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

    def _read_episodes(self, now: float) -> None:
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
                if self._mode == "sync":
                    raise ProtocolError("in synchronous mode the learner builds the episodes itself")
            except ProtocolError as error:
                self._connections.reject("episodes", error, key)
                continue
            self._deliver(message, key)

    def _deliver(self, episode: Episode, key: str = "") -> None:
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
            self._episodes += 1
        elif delivery is Delivery.FIRST:
            self._evaluated += 1

    def _carry_out(self, now: float, drained: bool) -> None:
        for instruction in self._registry.tick(now, drained):
            match instruction:
                case Send(session, message):
                    try:
                        self._send(session, self._encoded(message))
                    except ProtocolError as error:
                        reason = f"no message holds what it must be told: {error}"
                        self._registry.membership.refuse_by_name(session, reason, now)
                case SendSnapshot(session, version):
                    if version in self._frames:  # else a newer one was published since it was asked for
                        self._send(session, self._frames[version])
                case Log(level, text):
                    logger.log(logging.getLevelNamesMapping()[level.upper()], text)
                case Misconduct(key, offence, times):
                    if self._access:
                        self._access.offend(key, offence, now, times)
                case StopRun(reason):
                    raise RunStopped(reason)

    def _encoded(self, message: ToWorker) -> bytes:
        """Return the frame of a message; that of the welcome is made once, for it goes to all."""
        if message is not self._registry.welcome:
            return encode(message)
        self._welcome = self._welcome or encode(message)
        return self._welcome

    def _send(self, session: str, frame: bytes) -> None:
        if not self._connections.send(session, frame):
            self._registry.membership.undeliverable(session)

    def _keep(self, version: int, arrays: Arrays) -> None:
        """Keep a version's frame for snapshots, and publish it if it is the newest."""
        stamp = Version(self._registry.welcome.incarnation, version)
        self._frames[version] = encode(Weights(self._run, stamp, self._fingerprint, arrays))
        needed = self._registry.office.pinned_versions()
        self._frames = {number: frame for number, frame in self._frames.items() if number in needed}
        if version == max(needed):
            self._connections.publish(self._frames[version], len(self._registry.roster.hosts()))

    def _answer_queries(self, now: float) -> None:
        for asker, report in self._queries.take(now):
            try:
                frame = encode(report)
            except ProtocolError as error:
                logger.warning("the %s cannot be reported: %s", report.what, error)
                frame = encode(Report(report.what, {"error": one_line(str(error))}))
            self._connections.answer(asker, frame)

    def _figures(self, now: float) -> Mapping[str, Any]:
        began = {"since_first": self._began_issuing, "since_last": self._issued_all}
        issuing = {name: None if math.isnan(at) else now - at for name, at in began.items()}
        return {
            "measured": self.measured(),
            "issuing_seconds": issuing,
            "load": self._registry.load.load(now).to_plain() if self._mode == "async" else None,
            "progress": self.progress,
            "rejected": dict(self._connections.rejected),
            "keys": self._access.to_plain(now) if self._access else None,
        }

    def _picture(self, now: float) -> View:
        self._viewed_at = now
        rejected = sum(self._connections.rejected.values())
        return View(self._registry.glance(now), self._evaluated, rejected)

    def _anyone_here(self) -> bool:
        self.view = self._picture(time.monotonic())
        return bool(self._registry.roster.live())
