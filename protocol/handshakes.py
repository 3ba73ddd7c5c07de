"""Why a connection does not come about, in words, where both sides do not want to speak in the same way.

ZeroMQ itself is silent: a socket whose handshake fails tries again for ever or, where that is final, no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import zmq
from zmq.utils.monitor import parse_monitor_message

from protocol.sockets import Socket

_HANG_UPS = 3
"""In a row, before they mean something: one happens where a learner ends."""
_HUNG_UP_KEYED = (
    "the learner hangs up at each handshake: it has another key than this key file says, or none at all"
)
_HUNG_UP = "whoever listens there hangs up at each handshake: it is no learner, or wants a key (--key FILE)"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a handshake fails."""

    reason: str
    final: bool
    """ZeroMQ tries no more."""


class Handshakes:
    """Watches whether a socket that was connected `watched` is let in; `readable` wakes a poll."""

    def __init__(self, socket: Socket, *, keyed: bool) -> None:
        self._socket, self._keyed, self._hang_ups = socket, keyed, 0
        self.connections = 0
        """So many came about."""
        self.readable: Socket = socket.get_monitor_socket()

    def fault(self) -> Fault | None:
        """Return what is wrong with how both sides want to speak, where something new is known to be."""
        fault = None
        while self.readable.poll(0):
            event = int(parse_monitor_message(self.readable.recv_multipart())["event"])
            fault = self._judge(event) or fault
        return fault

    def close(self) -> None:
        """Watch no more; to be called before the socket is closed."""
        self._socket.disable_monitor()
        self.readable.close(linger=0)

    def _judge(self, event: int) -> Fault | None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._hang_ups = 0
            self.connections += 1
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return Fault("the learner does not let this key in: fleet keys allow, on its host, does", True)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and self._keyed:
            return Fault(
                "the learner has no keys, this side has one: leave --key out, or give it --keys", True
            )
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return Fault("the learner lets in only whom it has given a key: add --key FILE", True)
        else:
            self._hang_ups += 1
            if self._hang_ups == _HANG_UPS:
                return Fault(_HUNG_UP_KEYED if self._keyed else _HUNG_UP, False)
        return None
