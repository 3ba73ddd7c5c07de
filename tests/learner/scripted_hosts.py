"""Workers of synchronous mode over real sockets, in one thread with their learner: they do what a test says.

Their environment is a pure function of ticket and actions, so a test can tell what every slot should show.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import zmq
from numpy.typing import NDArray

from protocol.addresses import Ports
from protocol.codec import decode, encode
from protocol.messages import Built, Goodbye, Heartbeat, Hello, Holdings, Message, Refuse, Welcome
from protocol.sockets.frames import receive_nowait, send_nowait
from protocol.sockets.worker import connect_control, connect_step
from protocol.specs import Spaces
from protocol.step_messages import Present, SlotFailure, SlotReset, Step, Stepped
from protocol.tickets import Ticket

SPACES = Spaces(observation_size=4, observation_dtype="uint8", actions=3, masked=False, max_episode_steps=9)
HEARTBEAT_SECONDS = 0.05


def length(ticket: Ticket) -> int:
    """Return after how many steps an episode terminates."""
    return 3 + ticket.number % 5


def observation(ticket: Ticket, actions: Iterable[int]) -> NDArray[np.uint8]:
    """Return what an environment shows after these actions."""
    taken = bytes(actions)
    return np.array([ticket.number % 256, len(taken), *zlib.crc32(taken).to_bytes(4, "big")[:2]], np.uint8)


def reward(actions: list[int]) -> float:
    """Return what the last of these actions brings."""
    return float(actions[-1] - len(actions) % 2)


@dataclass
class ScriptedHost:
    """One worker: `serve` lets it do all that it has to do now."""

    context: zmq.Context[zmq.Socket[bytes]]
    ports: Ports
    session: str
    member: bool = False
    """Whether it also keeps up a membership over control."""
    played: dict[int, tuple[Ticket, list[int]]] = field(default_factory=dict)
    """What each slot plays, and its actions so far."""
    steps: list[Step] = field(default_factory=list)
    answer: Callable[[Stepped], Iterable[Message | bytes]] = lambda answer: [answer]
    """What it sends instead of an answer."""
    number: int = 0
    last: Stepped | None = None
    """The newest step's number, and its answer, which is repeated when that step is."""
    frozen: bool = False
    failing: set[int] = field(default_factory=set)
    """Numbers of train tickets whose second step raises."""
    refused: str = ""
    farewell: str = ""
    forwarded: int = 0
    """Resets that came with actions."""

    def __post_init__(self) -> None:
        self.incarnation = 1
        self.socket = connect_step(self.context, "127.0.0.1", self.ports.step, self.session)
        self.control = connect_control(self.context, "127.0.0.1", self.ports.control)
        self.beats, self.beaten_at, self.welcomed = 0, 0.0, False
        if not self.member:
            self.present()

    def present(self) -> None:
        send_nowait(self.socket, encode(Present(self.session, self.incarnation)))

    def kill(self) -> None:
        """End at once, as after SIGKILL."""
        self.frozen = True
        self.socket.close(linger=0)
        self.control.close(linger=0)

    def serve(self) -> None:
        if self.frozen:
            return
        if self.member:
            self._keep_membership()
        while (received := receive_nowait(self.socket)) is not None:
            step = decode(received[1])
            assert isinstance(step, Step)
            self.steps.append(step)
            if step.number > self.number:
                self.number, self.last = step.number, self.stepped(step)
            if self.last is None or step.number < self.number:
                continue
            for message in self.answer(self.last):
                send_nowait(self.socket, message if isinstance(message, bytes) else encode(message))

    def stepped(self, step: Step) -> Stepped:
        """Play a step and return the honest answer."""
        rows: list[NDArray[np.uint8]] = []
        rewards, ended, digests, failures = [], [], [], []
        todo = [
            SlotReset(slot, self.played[slot][0], np.array([*self.played[slot][1], action]))
            for slot, action in zip(step.slots.tolist(), step.actions.tolist(), strict=True)
        ]
        for place, reset in enumerate([*todo, *step.resets]):
            actions = [int(action) for action in reset.actions]
            self.played[reset.slot] = reset.ticket, actions
            rows.append(observation(reset.ticket, actions))
            rewards.append(reward(actions) if actions else 0.0)
            ended.append(len(actions) == length(reset.ticket))
            before = b"".join(observation(reset.ticket, actions[:n]).tobytes() for n in range(len(actions)))
            again = place >= len(todo) and actions
            self.forwarded += bool(again)
            digests.append(zlib.crc32(before) if again else 0)
            if reset.ticket.number in self.failing and len(actions) == 2:
                failures.append(SlotFailure(reset.slot, "it broke"))
        return Stepped(
            self.session,
            step.incarnation,
            step.number,
            np.stack(rows),
            np.array(rewards, np.float32),
            np.array(ended),
            np.zeros(len(rows), np.bool_),
            np.array(digests, np.uint32),
            tuple(failures),
        )

    def _keep_membership(self) -> None:
        while (received := receive_nowait(self.control)) is not None:
            match decode(received[1]):
                case Welcome() as welcome:
                    self.welcomed, self.incarnation = True, welcome.incarnation
                    self.present()
                case Refuse(reason):
                    self.refused = reason
                case Goodbye(_, reason):
                    self.farewell = reason
                    send_nowait(self.control, encode(Goodbye(self.session, reason)))
        now = time.monotonic()
        if now - self.beaten_at < HEARTBEAT_SECONDS:
            return
        self.beaten_at = now
        if not self.welcomed:
            send_nowait(self.control, encode(Hello(self.session, "host", 1, 1, "0.1.0")))
            return
        self.beats += 1
        built = Built(SPACES, "probe", "processor")
        beat = Heartbeat(self.session, self.beats, self.incarnation, 0, "ready", Holdings(), built=built)
        send_nowait(self.control, encode(beat))
