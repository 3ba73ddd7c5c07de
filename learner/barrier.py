"""The barrier of synchronous mode: an action for each slot goes out; the round ends when all have answered.

A slot *stands* while the environment at its host is where its episode is; such a slot is sent an action. Any
other (a fresh ticket, a lost host) is sent a reset with all actions so far. So a round survives whatever
becomes of workers in it: orders that will not be answered are void, their slots dealt to others and
fast-forwarded. Every frame has a number of its own, so an answer that is late or comes twice is told by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.access import Access
from learner.conduct import Offence
from learner.connections import next_frame
from learner.orders import Order, Results, stepped_fault
from learner.slots import NOBODY, deal
from learner.traffic import Traffic
from protocol.codec import decode, encode
from protocol.errors import ProtocolError
from protocol.messages import Message
from protocol.sockets import Socket
from protocol.sockets.frames import send_nowait
from protocol.specs import Spaces
from protocol.step_messages import Present, SlotReset, Step, Stepped

_NONE = np.empty(0, np.int64)
_TURN_MILLISECONDS = 20
"""Longest wait before looking at who is there again."""
_MOST_FRAMES = 1_000
"""That are decoded before a look at the round."""
_MOST_RESETS = 200
"""Of one frame: each carries an array, and `protocol.schema.Limits` allows 256."""


def _nothing(*_: Any) -> None:
    """Do nothing."""


@dataclass(slots=True)
class Watchers:
    """Who is told of what happens at the barrier."""

    answered: Callable[[Order, float], None] = _nothing
    """An order was answered at this monotonic time."""
    dealt: Callable[[Mapping[str, int]], None] = _nothing
    """The hosts have so many slots each now."""
    gone: Callable[[str, list[int]], None] = _nothing
    """A host left these slots in the middle of their episodes."""
    stuck: Callable[[str, list[int]], None] = _nothing
    """A host has not answered for too long, and others get these slots."""
    misshapen: Callable[[str, str], None] = _nothing
    """A host's answer has another shape; the reason."""
    rejected: Callable[[ProtocolError], None] = _nothing
    """A frame that is no valid message, or of no use any more."""


class Barrier:
    """Rounds of `slots` slots over a step ROUTER, for one thread.

    `reset_of` returns the reset that brings a slot to where its episode is, the action under way included;
    `ready` returns the sessions that may host, in order. A host that leaves an order unanswered for
    `stuck_after_seconds` while another is at hand loses its slots to the others, until it is heard again.
    With `access` the socket speaks CURVE, and a session is heard only under its own key, `key_of` it.
    """

    def __init__(
        self,
        socket: Socket,
        incarnation: int,
        slots: int,
        spaces: Spaces,
        *,
        reset_of: Callable[[int], SlotReset],
        ready: Callable[[], Sequence[str]],
        watchers: Watchers | None = None,
        access: Access | None = None,
        key_of: Callable[[str], str] = lambda session: "",
        stuck_after_seconds: float = 60.0,
    ) -> None:
        self.results = Results.empty(slots, spaces)
        self.hosts: NDArray[np.int64] = np.full(slots, NOBODY)
        """[slots]: the host of each, as a place in `sessions`."""
        self.actions: NDArray[np.int64] = np.zeros(slots, np.int64)
        """[slots]: the last action of each."""
        self.sessions: list[str] = []
        """All hosts that ever were."""
        self.traffic = Traffic()
        self._socket, self._incarnation, self._spaces = socket, incarnation, spaces
        self._reset_of, self._ready = reset_of, ready
        self._watchers = watchers or Watchers()
        self._access, self._key_of = access, key_of
        self._stuck_after_seconds = stuck_after_seconds
        self._stands, self._waiting, self._sent = (np.zeros(slots, np.bool_) for _ in range(3))
        self._orders: dict[int, Order] = {}
        self._number = 0
        self._newest: dict[str, int] = {}
        """Number of the last order of each host."""
        self._present: set[str] = set()
        """Whose way over the step socket is known."""
        self._stuck: set[str] = set()
        self._looked_at: Sequence[str] = ()
        self._settled = False
        """Whether no slot is to move, as far as is known."""
        self._due = False
        """Whether something may be to send."""
        self._balanced = False
        """Whether none would, if all could."""

    @property
    def waiting(self) -> bool:
        """Say whether a round is under way."""
        return bool(self._waiting.any())

    def begin(self, slots: NDArray[np.int64], actions: NDArray[np.int64]) -> None:
        """Begin a round: `slots` [k] are to take `actions` [k], or to be reset where they do not stand."""
        self._waiting[slots], self.actions[slots], self._due = True, actions, True
        self.results.reset[:] = False
        self.results.failures.clear()

    def free(self, slot: int) -> None:
        """Note that a slot's episode is over: it may move, and its next order is a reset."""
        self._stands[slot] = False
        self._settled &= self._balanced

    def leave_out(self, slot: int) -> None:
        """End the round, and the episode, for a slot that nobody has an order for."""
        self._waiting[slot] = False
        self.results.failures.pop(slot, None)
        self.free(slot)

    def wait(self, deadline: float) -> bool:
        """Go on with the round until it is over; False if it is not at this monotonic time."""
        while True:
            self._hear_all()
            self._look()
            self._send()
            if not (self._orders or self._waiting.any()):
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            if not self._socket.poll(min(_TURN_MILLISECONDS, int(remaining * 1000) + 1)):
                self._look_for_stuck(time.monotonic())

    def listen_on(self, socket: Socket) -> None:
        """Go on over another socket: all connections of the one before are closed."""
        self._socket = socket
        for host in list(self._present):
            self._forget(host)

    # Who hosts what

    def _look(self) -> None:
        """Deal the slots anew where someone came or went, or where slots may move that could not before."""
        ready = self._ready()
        if self._settled and ready is self._looked_at:
            return
        self._looked_at = ready
        usable = [host for host in ready if host in self._present and host not in self._stuck]
        for host in usable:
            if host not in self.sessions:
                self.sessions.append(host)
        places = [self.sessions.index(host) for host in usable]
        before, under_way = self.hosts, self._stands | self._sent
        for host in {order.host for order in self._orders.values()} - set(usable):
            self._void(host)
        self.hosts = deal(before, self._stands | self._sent, places)
        self._settled = self._due = True
        self._balanced = bool((self.hosts == deal(before, np.zeros_like(self._sent), places)).all())
        moved = self.hosts != before
        if not moved.any():
            return
        self._stands[moved] = False
        left = under_way & moved
        for place in np.unique(before[left]).tolist():
            self._watchers.gone(self.sessions[place], np.flatnonzero(left & (before == place)).tolist())
        counts = {host: int((self.hosts == place).sum()) for host, place in zip(usable, places, strict=True)}
        self._watchers.dealt(counts)

    def _void(self, host: str) -> None:
        """Expect no answer to a host's orders any more; their slots are to be reset."""
        for number, order in list(self._orders.items()):
            if order.host == host:
                del self._orders[number]
                self._sent[order.slots] = False
                self._stands[order.slots] = False
        self._settled, self._due = False, True

    def _look_for_stuck(self, now: float) -> None:
        before = now - self._stuck_after_seconds
        late = {order.host for order in self._orders.values() if order.sent_at <= before}
        usable = self._present.intersection(self._ready()) - self._stuck
        if late and usable - late:
            for host in late:
                slots = [s for o in self._orders.values() if o.host == host for s in o.slots.tolist()]
                self._stuck.add(host)
                self._offend(self._key_of(host), "no answer to a step")
                self._void(host)
                self._watchers.stuck(host, slots)

    # Out

    def _send(self) -> None:
        """Send what is due to whoever hosts it now."""
        if not self._due:
            return
        self._due = False
        due = np.flatnonzero(self._waiting & ~self._sent & (self.hosts != NOBODY))
        if not len(due):
            return
        due = due[np.argsort(self.hosts[due], kind="stable")]
        places = self.hosts[due]
        starts = np.flatnonzero(np.diff(places, prepend=NOBODY))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(due)], strict=True):
            host, slots = self.sessions[int(places[start])], due[start:stop]
            stands = self._stands[slots]
            stepped, anew = (slots, _NONE) if stands.all() else (slots[stands], slots[~stands])
            if not self._order(host, stepped, anew[:_MOST_RESETS]):
                continue
            for more in range(_MOST_RESETS, len(anew), _MOST_RESETS):
                self._order(host, stepped[:0], anew[more : more + _MOST_RESETS])

    def _order(self, host: str, stepped: NDArray[np.int64], anew: NDArray[np.int64]) -> bool:
        self._number += 1
        resets = tuple(self._reset_of(slot) for slot in anew.tolist())
        step = Step(self._incarnation, self._number, stepped.astype(np.int32), self.actions[stepped], resets)
        slots, frame = np.concatenate((stepped, anew)) if len(anew) else stepped, encode(step)
        self._newest[host] = self._number
        self._orders[self._number] = Order(host, slots, len(anew), frame, time.monotonic())
        self._sent[slots] = True
        return self._transmit(host, frame)

    def _transmit(self, host: str, frame: bytes) -> bool:
        sent = send_nowait(self._socket, host.encode(), frame)
        if sent:
            self.traffic.count(frame)
        else:
            self._forget(host)
        return sent

    def _forget(self, host: str) -> None:
        """Leave a host out until it says again that it is present."""
        self._present.discard(host)
        self._void(host)

    # In

    def _hear_all(self) -> None:
        now = time.monotonic()
        for _ in range(_MOST_FRAMES):
            if (received := next_frame(self._socket, self._access, "step", now)) is None:
                return
            identity, frame, key = received
            self.traffic.count(frame)
            try:
                message = self._decoded(identity, frame, key)
                if not isinstance(message, Present | Stepped):
                    raise ProtocolError(f"a {type(message).__name__} is not for a learner's step socket")
                if message.session.encode() != identity:
                    raise ProtocolError(f"a {type(message).__name__} under another name than its session")
                if message.incarnation < self._incarnation:
                    continue  # its worker has not heard yet that the learner is another one
                if message.incarnation > self._incarnation:
                    raise ProtocolError(f"a {type(message).__name__} of incarnation {message.incarnation}")
                if self._key_of(message.session) != key:
                    self._offend(key, "another key's session")
                    raise ProtocolError(f"a {type(message).__name__} under another key than its session's")
                if isinstance(message, Present):
                    self._arrived(message.session)
                elif self._answered(message) and self._access:
                    self._access.useful(key, "step", time.monotonic())
            except ProtocolError as error:
                self._watchers.rejected(error)

    def _offend(self, key: str, offence: Offence) -> None:
        if self._access:
            self._access.offend(key, offence, time.monotonic())

    def _decoded(self, identity: bytes, frame: bytes, key: str) -> Message:
        try:
            return decode(frame)
        except ProtocolError as error:
            self._offend(key, "no valid message")
            hosts = {order.host for order in self._orders.values() if order.host.encode() == identity}
            for host in (host for host in hosts if self._key_of(host) == key):
                self._forget(host)
                self._watchers.misshapen(host, f"what it answers is no valid message: {error}")
            raise

    def _arrived(self, host: str) -> None:
        """Note that the way to a host is open; it says so, too, when it misses something."""
        self._present.add(host)
        self._stuck.discard(host)
        self._settled = False
        missing = [number for number, order in self._orders.items() if order.host == host]
        if missing == [self._newest.get(host)]:  # it repeats its last answer, if it has answered that
            self._transmit(host, self._orders[missing[0]].frame)
        else:
            self._void(host)

    def _answered(self, answer: Stepped) -> bool:
        """Take an answer in; return whether it is what was asked for."""
        if answer.session in self._stuck:
            self._stuck.discard(answer.session)
            self._settled = False
        order = self._orders.get(answer.number)
        if order is None or order.host != answer.session:
            raise ProtocolError(f"answer {answer.number} of session {answer.session} is late or a second one")
        if fault := stepped_fault(answer, len(order.slots), self._spaces):
            self._forget(answer.session)
            self._watchers.misshapen(answer.session, fault)
            return False
        del self._orders[answer.number]
        slots, results = order.slots, self.results
        results.observations[slots] = answer.observations
        results.rewards[slots] = answer.rewards
        results.terminated[slots] = answer.terminated
        results.truncated[slots] = answer.truncated
        results.digests[slots] = answer.digests
        if order.resets:
            results.reset[slots[len(slots) - order.resets :]] = True
        self._sent[slots] = self._waiting[slots] = False
        self._stands[slots] = True
        for failure in answer.failures:
            if failure.slot in slots:
                results.failures[failure.slot] = failure.reason
        self._watchers.answered(order, time.monotonic())
        return True
