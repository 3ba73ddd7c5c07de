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
from types import TracebackType
from typing import Any, TypeVar

import zmq

from learner.access import Access
from learner.attention import Attention
from learner.connections import Connections
from learner.descriptors import with_room
from learner.evaluation_requests import Evaluation
from learner.instructions import Log, Misconduct, Send, SendSnapshot, StopRun, one_line
from learner.mailbox import Mailbox, RunStopped, take
from learner.pace import IssueSpan
from learner.queries import Queries
from learner.reception import Reception
from learner.registry import Registry
from learner.shared_frames import SharedFrames
from learner.status import View
from protocol.codec import encode
from protocol.errors import ProtocolError
from protocol.messages import Arrays, Episode, Report
from protocol.sockets.learner import LearnerSockets

logger = logging.getLogger(__name__)
T = TypeVar("T")

TURN_MILLISECONDS = 20
"""Longest wait of a turn that finds nothing to do."""
PAUSE_MILLISECONDS = 4
"""Between two turns, but for what the trainer asks: what comes meanwhile shares the next one, and tickets are
dealt no more often anyhow."""
VIEW_SECONDS = 0.2
"""Age at which the picture for the display is renewed."""
GOODBYE_AGAIN_SECONDS = 0.5
"""At the end of a run, to those who are still there: one may have joined, or connected anew, meanwhile."""
REOPEN_PAUSE_SECONDS = 60.0
"""Between two closings of all connections for the sake of who is expelled."""


class Collector:
    """Collects episodes from `__enter__` to `__exit__`; `registry` is the I/O thread's from then on.

    `access` says whose frames are looked at where the sockets speak CURVE, and only there.
    """

    def __init__(self, registry: Registry, sockets: LearnerSockets, access: Access | None = None) -> None:
        self._registry, self._sockets, self._access = registry, sockets, access
        self._frames = SharedFrames(registry.welcome)
        self._connections = Connections(sockets, access, registry.roster.belongs)
        self._mailbox = Mailbox()
        self._poller = zmq.Poller()
        self._attention = Attention(registry.config.liveness_seconds, time.monotonic())
        self._reopen_due, self._may_reopen_at = False, -math.inf
        self._batches: queue.SimpleQueue[list[Episode] | BaseException] = queue.SimpleQueue()
        self._evaluations: queue.SimpleQueue[Evaluation | BaseException] = queue.SimpleQueue()
        self._issue_span = IssueSpan()
        self.progress: Mapping[str, Any] | None = None
        """What the trainer's thread tells an operator, in plain values."""
        self._queries = Queries(registry, self._figures)
        self._reception = Reception(registry, self._connections, self._queries, access)
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
        return self._reception.episodes

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
        """Tell every worker that the run is over until all have gone, those that are silent as lost."""
        now = tell_at = time.monotonic()
        deadline = now + self._registry.config.liveness_seconds
        while now < deadline:
            if now >= tell_at:
                self._mailbox.ask(lambda: self._registry.finish(reason)).result()
                tell_at = now + GOODBYE_AGAIN_SECONDS
            if not self._mailbox.ask(self._anyone_here).result():
                return
            time.sleep(TURN_MILLISECONDS / 1000)
            now = time.monotonic()

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
            drained = self._attention.heard_everyone(self._reception.read_control(now), now)
            self._reception.read_episodes(now)
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
        self._reception.read_control(now)
        self._answer_queries(now)
        self._reception.read_episodes(now)
        with_room(lambda: self._sockets.reopen("control", "weights", "episodes"))
        self._reopen_step()
        self._listen()
        logger.info("closed all connections: those who are let in come back by themselves")

    def _reopen_step(self) -> None:
        with_room(lambda: self._sockets.reopen("step"))

    def _look_round(self, now: float) -> None:
        """At the end of a turn, leave a picture for the trainer's thread where the last one is old."""
        office = self._registry.office
        all_issued = office.issued >= office.config.total_episodes
        self._issue_span.note(office.train.account.issued > 0, all_issued, now)
        if now - self._viewed_at >= max(VIEW_SECONDS, self._registry.round_seconds):
            for name in list(self._connections.identities):
                if not self._registry.roster.knows(name):
                    del self._connections.identities[name]
            if self._access:
                here = Counter(session.key for session in self._registry.roster.live())
                self._access.conduct.count_sessions(here)
            self.view = self._picture(now)

    def _carry_out(self, now: float, drained: bool) -> None:
        for instruction in self._registry.tick(now, drained):
            match instruction:
                case Send(session, message):
                    try:
                        self._send(session, self._frames.of(message))
                    except ProtocolError as error:
                        reason = f"no message holds what it must be told: {error}"
                        self._registry.membership.refuse_by_name(session, reason, now)
                case SendSnapshot(session, version):
                    if frame := self._frames.weights(version):  # else a newer one was published meanwhile
                        self._send(session, frame)
                case Log(level, text):
                    logger.log(logging.getLevelNamesMapping()[level.upper()], text)
                case Misconduct(key, offence, times):
                    if self._access:
                        self._access.offend(key, offence, now, times)
                case StopRun(reason):
                    raise RunStopped(reason)

    def _send(self, session: str, frame: bytes) -> None:
        if not self._connections.send(session, frame):
            self._registry.membership.undeliverable(session)

    def _keep(self, version: int, arrays: Arrays) -> None:
        """Keep a version's frame for snapshots, and publish it if it is the newest."""
        needed = self._registry.office.pinned_versions()
        frame = self._frames.keep(version, arrays, needed)
        if version == max(needed):
            self._connections.publish(frame, len(self._registry.roster.hosts()))

    def _answer_queries(self, now: float) -> None:
        for asker, report in self._queries.take(now):
            try:
                frame = encode(report)
            except ProtocolError as error:
                logger.warning("the %s cannot be reported: %s", report.what, error)
                frame = encode(Report(report.what, {"error": one_line(str(error))}))
            self._connections.answer(asker, frame)

    def _figures(self, now: float) -> Mapping[str, Any]:
        deals = self._registry.welcome.mode == "async"
        return {
            "measured": self.measured(),
            "issuing_seconds": self._issue_span.seconds(now),
            "load": self._registry.load.load(now).to_plain() if deals else None,
            "progress": self.progress,
            "rejected": dict(self._connections.rejected),
            "keys": self._access.to_plain(now) if self._access else None,
        }

    def _picture(self, now: float) -> View:
        self._viewed_at = now
        rejected = sum(self._connections.rejected.values())
        return View(self._registry.glance(now), self._reception.evaluated, rejected)

    def _anyone_here(self) -> bool:
        self.view = self._picture(time.monotonic())
        return bool(self._registry.roster.live())
