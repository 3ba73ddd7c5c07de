"""The collector of synchronous mode: the learner acts in all environments at once and builds the episodes.

The I/O thread is `Collector`'s and keeps membership, tickets and ledger. The barrier runs in the trainer's
thread, inside `next_batch` and `next_evaluation`, and goes on where it was when they are called again.

The same bits come out whatever the workers do: tickets go to free slots in order, inference is over all slots
(idle rows are zero) in fixed places, and an action depends on weights, observation, ticket and step alone.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from learner.access import Access
from learner.barrier import Barrier, Watchers
from learner.collector import Collector
from learner.conduct import Offence
from learner.descriptors import with_room
from learner.evaluation_requests import Evaluation
from learner.inference import Actor, fastest_device
from learner.mailbox import RunStopped, take
from learner.orders import Order
from learner.own_tickets import OwnTickets
from learner.registry import Registry
from learner.slots import NOBODY, OpenEpisodes
from learner.step_hook import Hook, Round
from learner.step_record import StepRecorder
from protocol.errors import ProtocolError
from protocol.messages import LARGEST, Arrays, Episode, Version
from protocol.sockets.learner import LearnerSockets
from protocol.tickets import Ticket, action_uniforms

logger = logging.getLogger(__name__)
T = TypeVar("T")

NOT_REPRODUCIBLE = "not reproducible"
"""Why a ticket is discarded whose environment, reset and given the same actions, showed something else."""


class SynchronousCollector(Collector):
    """Collects episodes, `n_envs` slots in step; `recorder` and `hook` are shown every round."""

    def __init__(
        self,
        registry: Registry,
        sockets: LearnerSockets,
        recorder: StepRecorder | None = None,
        hook: Hook | None = None,
        access: Access | None = None,
    ) -> None:
        super().__init__(registry, sockets, access)
        self._step_is_closed = threading.Event()
        welcome, config = registry.welcome, registry.config
        slots = config.n_envs
        spaces = welcome.environment.spaces
        self._incarnation, self._max_steps = welcome.incarnation, spaces.max_episode_steps
        self._recorder, self._hook, self._rounds = recorder, hook, 0
        self._barrier_seconds = self._round_began = 0.0
        self._steps = 0
        self._own = OwnTickets(registry.office)
        self._tickets: deque[tuple[Ticket, int]] = deque()
        """Drawn and not begun, each with the version it is to be played under."""
        self._dry = False
        """Whether no ticket could be drawn the last time, and nothing has happened since."""
        self._policies: dict[int, Arrays] = {}
        self._actor, self._version = Actor(welcome.policy, fastest_device()), -1
        self._hosts: tuple[str, ...] = ()
        self._names: dict[str, str] = {}
        self._open = OpenEpisodes(slots, welcome.environment, welcome.run_seed)
        self._slots = np.empty(0, np.int64)
        """Those of the round under way."""
        self._barrier = Barrier(
            sockets.step,
            welcome.incarnation,
            slots,
            spaces,
            reset_of=self._open.reset,
            ready=lambda: self._hosts,
            watchers=Watchers(
                answered=self._note_answer,
                dealt=lambda counts: self._post(lambda: registry.roster.note_dealt(counts)),
                gone=self._note_gone,
                stuck=self._note_stuck,
                misshapen=self._refuse,
                rejected=self._note_rejected,
            ),
            access=access,
            key_of=registry.roster.key_of,
            stuck_after_seconds=config.stuck_after_seconds,
        )

    # The interface of Collector

    def inherit(self, version: int, arrays: Arrays) -> None:
        """Hold the weights of a version that is not new: those a run begins or goes on with."""
        super().inherit(version, arrays)
        self._policies[version] = arrays

    def publish(self, version: int, arrays: Arrays) -> None:
        """Play under these weights, of the update just done, from now on."""
        super().publish(version, arrays)
        pinned = self._mailbox.ask(self._registry.office.pinned_versions).result()
        self._policies = {v: a for v, a in {**self._policies, version: arrays}.items() if v in pinned}
        self._dry = False

    def request_evaluation(self, version: int, episodes: int, arrays: Arrays | None = None) -> range:
        """Ask for fresh episodes under exactly this version; `next_evaluation` returns them."""
        self._dry = False
        if arrays is not None:
            self._policies[version] = arrays
        return super().request_evaluation(version, episodes, arrays)

    def next_batch(self, timeout_seconds: float) -> list[Episode] | None:
        """Play until the next batch is closed and return it by ticket, or None in time."""
        return self._play(self._batches, timeout_seconds)

    def next_evaluation(self, timeout_seconds: float) -> Evaluation | None:
        """Play until an evaluation is finished and return it, or None in time."""
        return self._play(self._evaluations, timeout_seconds)

    def measured(self) -> dict[str, float]:
        """Return what has added up in this process; steps, barriers and the time at them, too."""
        found = super().measured()
        found["messages"] += self._barrier.traffic.messages
        found["bytes"] += self._barrier.traffic.size_bytes
        mine = {"steps": self._steps, "rounds": self._rounds, "barrier_seconds": self._barrier_seconds}
        return found | mine

    # Rounds

    def _play(self, results: queue.SimpleQueue[T | BaseException], timeout_seconds: float) -> T | None:
        deadline = time.monotonic() + timeout_seconds
        while (result := take(results, 0)) is None and time.monotonic() < deadline:
            if self._step_is_closed.is_set():
                self._step_is_closed.clear()
                with_room(lambda: self._sockets.reopen("step"))
                self._barrier.listen_on(self._sockets.step)
            if not self._barrier.waiting and not self._begin():
                return take(results, max(0.0, deadline - time.monotonic()))
            if self._barrier.wait(deadline):
                self._take_in()
        return result

    def _begin(self) -> bool:
        """Begin a round; False where no slot has anything to play."""
        self._fill()
        slots = np.flatnonzero(self._open.playing)
        if not len(slots):
            return False
        actions, log_probs = self._actor.act(
            self._open.current, action_uniforms(self._open.keys, self._open.steps), self._open.greedy
        )
        begun = slots[self._open.begun[slots]]
        self._open.choose(begun, actions[begun], log_probs[begun])
        self._slots = slots
        self._round_began = time.monotonic()
        self._barrier.begin(slots, actions[slots])
        return True

    def _fill(self) -> None:
        """Give tickets to the free slots, in order, as long as the slots play under one version."""
        for slot in np.flatnonzero(~self._open.playing).tolist():
            if not self._tickets and not self._dry:
                self._tickets.extend(self._mailbox.ask(self._own.draw).result())
                self._dry = not self._tickets
            if not self._tickets or not self._turn_to(self._tickets[0][1]):
                return
            self._open.begin(slot, self._tickets.popleft()[0])

    def _turn_to(self, version: int) -> bool:
        """Act under this version from now on; False while slots still play under another."""
        if version != self._version:
            if self._open.playing.any():
                return False
            self._actor.load(self._policies[version])
            self._version = version
        return True

    def _take_in(self) -> None:
        """Take in what a round brought: first observations, steps, ends and failures."""
        results, slots, episodes = self._barrier.results, self._slots, self._open
        self._barrier_seconds += time.monotonic() - self._round_began
        self._rounds += 1
        failed = sorted(results.failures)
        repeated = set(slots[episodes.begun[slots] & results.reset[slots]].tolist()) - set(failed)
        strange = sorted(slot for slot in repeated if results.digests[slot] != episodes.digest(slot))
        good = np.setdiff1d(slots, [*failed, *strange]) if failed or strange else slots
        stepped = good[episodes.begun[good]]
        self._steps += len(stepped)
        if self._hook:
            self._hook(self._seen(stepped))
        episodes.see(good, results.observations[good], results.rewards[good])
        ended = results.terminated[stepped] | results.truncated[stepped]
        ended |= episodes.steps[stepped] >= self._max_steps
        self._deliver_all(stepped[ended])
        self._fail([(slot, results.failures[slot]) for slot in failed])
        for slot in strange:
            self._discard(slot)
        for slot in (*failed, *strange):
            self._free(slot)

    def _deliver_all(self, slots: NDArray[np.int64]) -> None:
        """Hand the episodes that ended over to the I/O thread."""
        delivered, failed = [], []
        for slot in slots.tolist():
            terminated = bool(self._barrier.results.terminated[slot])
            version = Version(self._incarnation, self._version)
            episode = self._open.finish(slot, self._registry.welcome.run, version, terminated)
            if name := episode.out_of_range():
                fault = f"ValueError: the environment's {name} are not all finite numbers within {LARGEST:g}"
                self._offend(slot, "invalid episode")
                failed.append((slot, fault))
            else:
                delivered.append(episode)
        self._fail(failed)
        for slot in slots.tolist():
            self._free(slot)

        def task() -> None:
            for episode in delivered:
                self._reception.deliver(episode)
            self._own.delivered()

        if delivered:
            self._dry = False
            self._post(task)

    def _fail(self, failures: Sequence[tuple[int, str]]) -> None:
        """Count failures, (slot, reason) each; the tickets to be played again come next, in order."""
        again = []
        for slot, reason in failures:
            ticket = self._open.ticket(slot)
            logger.error("ticket %s failed in slot %d: %s", ticket, slot, reason)
            self._offend(slot, "failed ticket")
            if self._mailbox.ask(partial(self._own.failed, ticket, reason)).result():
                again.append((ticket, self._version))
            self._dry = False
        self._tickets.extendleft(reversed(again))

    def _offend(self, slot: int, offence: Offence) -> None:
        """Count something against the key of a slot's host."""
        if self._access and (place := int(self._barrier.hosts[slot])) != NOBODY:
            key = self._registry.roster.key_of(self._barrier.sessions[place])
            self._access.offend(key, offence, time.monotonic())

    def _discard(self, slot: int) -> None:
        ticket = self._open.ticket(slot)
        logger.error("ticket %s in slot %d showed other observations when it was repeated", ticket, slot)
        self._mailbox.ask(lambda: self._own.discard(ticket, NOT_REPRODUCIBLE)).result()
        self._dry = False

    def _free(self, slot: int) -> None:
        self._open.free(slot)
        self._barrier.free(slot)

    # What the barrier tells

    def _seen(self, slots: NDArray[np.int64]) -> Round:
        results, episodes = self._barrier.results, self._open
        return Round(
            number=self._rounds,
            version=self._version,
            slots=slots,
            tickets=tuple(episodes.ticket(slot) for slot in slots.tolist()),
            steps=episodes.steps[slots],
            observations=episodes.current[slots],
            actions=self._barrier.actions[slots],
            rewards=results.rewards[slots],
            terminated=results.terminated[slots],
            truncated=results.truncated[slots] | (episodes.steps[slots] + 1 >= self._max_steps),
            next_observations=results.observations[slots],
        )

    def _note_answer(self, order: Order, now: float) -> None:
        if self._recorder:
            name = self._name(order.host)
            self._recorder.note(self._rounds + 1, name, order.slots, order.sent_at, now)

    def _name(self, host: str) -> str:
        if host not in self._names:
            self._names[host] = self._mailbox.ask(lambda: self._registry.roster.name(host)).result()
        return self._names[host]

    def _note_gone(self, host: str, slots: list[int]) -> None:
        """Where a worker was lost, count that against what it hosted, as it may have killed it."""
        tickets = {self._open.ticket(slot): slot for slot in slots}
        logger.warning("%d slots of worker %s go on elsewhere", len(slots), self._name(host))
        if self._mailbox.ask(lambda: self._registry.roster.lost(host)).result():
            self._give_up(tickets, self._mailbox.ask(lambda: self._own.lost(tickets)).result())

    def _note_stuck(self, host: str, slots: list[int]) -> None:
        tickets = {self._open.ticket(slot): slot for slot in slots}
        name = self._name(host)
        logger.warning("worker %s does not answer: its %d slots go on elsewhere", name, len(slots))
        self._give_up(tickets, self._mailbox.ask(lambda: self._own.stuck(tickets)).result())

    def _give_up(self, slots: Mapping[Ticket, int], given_up: list[Ticket]) -> None:
        for ticket in given_up:
            self._open.free(slots[ticket])
            self._barrier.leave_out(slots[ticket])
            self._slots = self._slots[self._slots != slots[ticket]]
            self._dry = False

    def _refuse(self, host: str, fault: str) -> None:
        self._post(lambda: self._registry.membership.refuse_by_name(host, fault, time.monotonic()))

    def _note_rejected(self, error: ProtocolError) -> None:
        self._connections.reject("step", error)

    # The I/O thread

    def _reopen_step(self) -> None:
        """Leave it to the trainer's thread, whose socket it is."""
        self._step_is_closed.set()

    def _look_round(self, now: float) -> None:
        super()._look_round(now)
        if (hosts := self._registry.roster.hosts()) != self._hosts:
            self._hosts = hosts

    def _post(self, action: Callable[[], Any]) -> None:
        """Let the I/O thread do something, without waiting; an error ends the next wait."""

        def surface(done: Future[Any]) -> None:
            error = done.exception()
            if error is not None and not isinstance(error, RunStopped):
                self._batches.put(error)
                self._evaluations.put(error)

        self._mailbox.ask(action).add_done_callback(surface)
