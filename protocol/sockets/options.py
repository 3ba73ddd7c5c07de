"""What all sockets of both sides have in common."""

from __future__ import annotations

import random

from protocol.schema import Limits
from protocol.sockets import Context, Socket

_HIGH_WATER_MARK = 8  # messages, per peer and side; weights may be large
CONTROL_LINGER_MS = 200  # long enough for a goodbye
_RECONNECT_MS, _RECONNECT_MOST_MS = 100, 2_000
_BACKLOG = 2_048  # connections that wait to be accepted; who finds no room tries again only after a second
_HANDSHAKE_MS = 5_000  # who connects and says nothing holds a file descriptor no longer
_KEEPALIVE_IDLE_SECONDS, _KEEPALIVE_INTERVAL_SECONDS, _KEEPALIVE_COUNT = 30, 10, 3
_RANDOM = random.SystemRandom()


def open_socket(context: Context, kind: int, limits: Limits, linger_ms: int) -> Socket:
    """Return a socket that is neither bound nor connected."""
    socket = context.socket(kind)
    socket.linger = linger_ms
    socket.sndhwm = socket.rcvhwm = _HIGH_WATER_MARK
    socket.maxmsgsize = limits.max_frame_bytes
    socket.reconnect_ivl = _RECONNECT_MS + _RANDOM.randrange(_RECONNECT_MS)  # or a fleet returns at once
    socket.reconnect_ivl_max = _RECONNECT_MOST_MS
    socket.handshake_ivl = _HANDSHAKE_MS
    socket.backlog = _BACKLOG
    socket.tcp_keepalive = 1
    socket.tcp_keepalive_idle = _KEEPALIVE_IDLE_SECONDS
    socket.tcp_keepalive_intvl = _KEEPALIVE_INTERVAL_SECONDS
    socket.tcp_keepalive_cnt = _KEEPALIVE_COUNT
    return socket
