"""The learner's side of its workers' connections: which frames are looked at, and whose they are."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from learner.access import Access
from learner.conduct import Line, Offence
from learner.instructions import one_line
from learner.traffic import Traffic
from protocol.errors import ProtocolError
from protocol.messages import Goodbye, Heartbeat, Hello, LogLines, Message, SnapshotRequest
from protocol.sockets import Socket
from protocol.sockets.frames import receive_keyed, receive_nowait, send_nowait
from protocol.sockets.learner import LearnerSockets

logger = logging.getLogger(__name__)

MOST_DROPPED_PER_TURN = 20_000
"""Frames of those who are expelled or over their budget, which cost a few microseconds each."""


class ForeignSession(ProtocolError):
    """A peer has named a session of another key."""


class Connections:
    """Frames in and out, all of them looked at without `access`; the I/O thread's, but for `reject`.

    `belongs` says whether a session, by name, is a public key's.
    """

    def __init__(
        self, sockets: LearnerSockets, access: Access | None, belongs: Callable[[str, str], bool]
    ) -> None:
        self._sockets, self._access, self._belongs = sockets, access, belongs
        self.identities: dict[str, bytes] = {}
        """Of the connection over which each session speaks."""
        self.rejected: Counter[str] = Counter()
        """Frames that were no valid message, by socket."""
        self.traffic = Traffic()

    def receive(self, line: Line, now: float) -> tuple[bytes, bytes, str] | None:
        """Return the `next_frame` of control or of episodes."""
        socket = self._sockets.control if line == "control" else self._sockets.episodes
        return next_frame(socket, self._access, line, now)

    def bind(self, message: Message, identity: bytes, key: str) -> None:
        """Let a session belong to the peer that named it first. Raises ProtocolError where another does."""
        if not isinstance(message, Hello | Heartbeat | SnapshotRequest | Goodbye | LogLines):
            return
        if not self._belongs(message.session, key):
            raise ForeignSession("a peer has named a session of another key")
        if self.identities.setdefault(message.session, identity) != identity:
            raise ProtocolError("a peer has named another one's session")

    def send(self, session: str, frame: bytes) -> bool:
        """Send a worker a frame over control; return whether that could be done."""
        identity = self.identities.get(session)
        if identity is None or not send_nowait(self._sockets.control, identity, frame):
            return False
        self.traffic.count(frame)
        return True

    def publish(self, frame: bytes, receivers: int) -> None:
        """Send a frame to all who host, so many, over weights."""
        send_nowait(self._sockets.weights, frame)
        self.traffic.count(frame, receivers)

    def answer(self, asker: bytes, frame: bytes) -> None:
        """Send a frame to whoever asked, which is no worker and no traffic of the run's."""
        send_nowait(self._sockets.control, asker, frame)

    def reject(
        self, socket: str, error: ProtocolError, key: str = "", offence: Offence = "no valid message"
    ) -> None:
        """Count a bad message; say so the 1st, 10th, 100th time, so that a flood cannot fill the disk."""
        if self._access:
            foreign = isinstance(error, ForeignSession)
            self._access.offend(key, "another key's session" if foreign else offence, time.monotonic())
        self.rejected[socket] += 1
        count = self.rejected[socket]
        if count == 10 ** (len(str(count)) - 1):
            reason = one_line(str(error))
            logger.warning("dropped invalid message number %d on the %s port: %s", count, socket, reason)


def next_frame(
    socket: Socket, access: Access | None, line: Line, now: float
) -> tuple[bytes, bytes, str] | None:
    """Return the next frame that is to be decoded, as (identity, frame, public key), if there is one."""
    if access is None:
        received = receive_nowait(socket)
        return (*received, "") if received else None
    for _ in range(MOST_DROPPED_PER_TURN):
        keyed = receive_keyed(socket)
        if keyed is None or access.passes(keyed[2], line, now):
            return keyed
    return None
