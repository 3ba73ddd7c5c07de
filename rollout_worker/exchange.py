"""Where a worker's two threads meet: events go in, what is to be done is dealt to the thread it is for."""

from __future__ import annotations

import logging
import math
import os
import socket as network
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import protocol
from protocol.errors import ProtocolError
from protocol.messages import Hello, ToLearner, Version, Weights
from rollout_worker.events import (
    Abandon,
    Build,
    Dial,
    Event,
    Forget,
    Instruction,
    Introduce,
    Log,
    Push,
    Release,
    Send,
    Start,
    Stop,
)
from rollout_worker.host import Host
from rollout_worker.journal import Journal
from rollout_worker.membership import Membership
from rollout_worker.options import Place, WorkerOptions
from rollout_worker.outbox import Outbox
from rollout_worker.player import Player
from rollout_worker.policy import Policy

logger = logging.getLogger("rollout_worker")

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@dataclass(frozen=True, slots=True)
class Play:
    """A ticket to start, and its weights."""

    start: Start
    policy: Policy


Task = Build | Introduce | Dial | Abandon | Play


class Exchange:
    """What both threads share; all of it behind `changed`, the lock of the state machine."""

    def __init__(self, options: WorkerOptions, places: Mapping[str, Place], wake: Callable[[], None]) -> None:
        """`wake` ends the membership thread's poll."""
        hello = Hello(
            session=os.urandom(8).hex(),
            host=network.gethostname(),
            pid=os.getpid(),
            slots=options.slots,
            software=protocol.VERSION,
            pool=options.pool,
            label=options.label,
        )
        self.session = hello.session
        self.changed = threading.Condition()
        self.stop: Stop | None = None
        self.place = next(iter(places.values()))
        """Where the learner is looked for now."""
        self.dials: deque[Place] = deque()
        self.messages: deque[ToLearner] = deque()
        self.outbox = Outbox(Journal(options.journal, hello.session))
        self.rejected = 0
        self.work: Player | Host | None = None
        """What the main thread does, once the environment is built."""
        self.worked = threading.Event()
        """Set when the main thread is through."""
        self._membership = Membership(
            hello, time.monotonic(), options.give_up_after_seconds, options.max_failures, tuple(places)
        )
        self._places, self._wake = places, wake
        self._policies: dict[Version, Policy] = {}
        self._tasks: deque[Task] = deque()

    def post(self, events: Iterable[Event]) -> None:
        """Take events in, from any thread, and deal out what is to be done."""
        with self.changed:
            for event in events:
                for instruction in self._membership.handle(event, time.monotonic()):
                    self._deal(instruction)
            self.changed.notify()
        if threading.current_thread() is threading.main_thread():
            self._wake()

    def next_tick(self) -> float:
        """Return the time of the next Tick at the latest."""
        with self.changed:
            return self._membership.next_tick(time.monotonic())

    def take_tasks(self, patience_seconds: Callable[[], float]) -> list[Task] | None:
        """Wait so long for something to do, and return all of it; None once the worker is to stop."""
        with self.changed:
            while not (self._tasks or self.stop):
                if (seconds := patience_seconds()) <= 0:
                    break
                self.changed.wait(None if seconds == math.inf else seconds)
            if self.stop:
                return None
            tasks = list(self._tasks)
            self._tasks.clear()
        return tasks

    def take_weights(self, weights: Weights) -> None:
        """Keep weights that this worker may play under. ProtocolError where they are not of its run."""
        welcome = self._membership.welcome
        if welcome is None or welcome.mode == "sync" or weights.version in self._policies:
            return
        if weights.run != welcome.run or weights.fingerprint != welcome.policy.fingerprint():
            raise ProtocolError(
                f"run {weights.run}, policy {weights.fingerprint}; this worker plays run {welcome.run},"
                f" policy {welcome.policy.fingerprint()}"
            )
        policy = Policy(welcome.policy, weights.arrays)
        with self.changed:
            self._policies[weights.version] = policy
        self.post([weights])

    def reject(self, error: ProtocolError) -> None:
        """Count a message that does not decode, from any thread."""
        with self.changed:
            self.rejected += 1
            if self.rejected & (self.rejected - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
                logger.warning("dropped message number %d that does not decode: %s", self.rejected, error)

    def _deal(self, instruction: Instruction) -> None:
        match instruction:
            case Send(message):
                self.messages.append(message)
            case Dial(address):
                self.place = self._places[address]
                self.dials.append(self.place)
                self._tasks.append(instruction)
            case Build() | Introduce() | Abandon():
                self._tasks.append(instruction)
            case Start():
                self._tasks.append(Play(instruction, self._policies[instruction.version]))
            case Push(tickets):
                self.outbox.push(tickets)
            case Forget(tickets):
                self.outbox.forget(tickets)
            case Release(versions):
                for version in versions:
                    del self._policies[version]
            case Log(level, text):
                logger.log(_LEVELS[level], "%s", text)
            case Stop():
                self.stop = instruction
