"""The sockets of a worker, or of a command that asks: they connect."""

from __future__ import annotations

import os
from dataclasses import dataclass

import zmq

from protocol.addresses import endpoint, resolve
from protocol.errors import UserError
from protocol.keys import PeerKey
from protocol.schema import DEFAULT, Limits
from protocol.sockets import Context, Socket
from protocol.sockets.options import CONTROL_LINGER_MS, open_socket

_HANDSHAKES = int(
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_EPISODES_LINGER_MS = 1_000  # a worker waits for acknowledgement anyhow, and must end within 2 s
_CONNECT_MS = 3_000  # the system's own pause between attempts doubles up to a minute
_UNACKNOWLEDGED_MS = 10_000  # after a cut TCP alone would be silent for up to two minutes more
_STEP_WAIT_MS = 100  # how long a worker that waits for a step is deaf to everything else


@dataclass(frozen=True, slots=True)
class Dialling:
    """How a worker or a command connects."""

    key: PeerKey | None = None
    """None speaks in the clear."""
    watched: bool = False
    """Whether `protocol.handshakes.Handshakes` will read how it went; unread news would pile up."""


IN_THE_CLEAR = Dialling()


def connect_control(
    context: Context, host: str, port: int, peer: Dialling = IN_THE_CLEAR, *, limits: Limits = DEFAULT
) -> Socket:
    """Return a DEALER under a random identity: ROUTER ignores a second peer of the same name in silence."""
    socket = open_socket(context, zmq.DEALER, limits, CONTROL_LINGER_MS)
    socket.routing_id = b"w" + os.urandom(15)  # must not begin with a zero byte
    socket.immediate = True  # without a learner nothing queues: only the newest heartbeat is worth sending
    return _connect(socket, host, port, peer)


def connect_weights(
    context: Context, host: str, port: int, peer: Dialling = IN_THE_CLEAR, *, limits: Limits = DEFAULT
) -> Socket:
    """Return a SUB that keeps the newest frame only."""
    socket = open_socket(context, zmq.SUB, limits, 0)
    socket.conflate = True
    socket.subscribe(b"")
    return _connect(socket, host, port, peer)


def connect_episodes(
    context: Context, host: str, port: int, peer: Dialling = IN_THE_CLEAR, *, limits: Limits = DEFAULT
) -> Socket:
    """Return a PUSH whose queue outlives a lost connection, so the learner may receive an episode twice.

    Of 300 episodes in flight when a learner was killed, IMMEDIATE=0 lost 34 and IMMEDIATE=1 all.
    """
    socket = open_socket(context, zmq.PUSH, limits, _EPISODES_LINGER_MS)
    socket.immediate = False
    return _connect(socket, host, port, peer)


def connect_step(
    context: Context,
    host: str,
    port: int,
    session: str,
    peer: Dialling = IN_THE_CLEAR,
    *,
    limits: Limits = DEFAULT,
) -> Socket:
    """Return a DEALER under the session's name, by which its learner addresses it; see `receive_soon`."""
    socket = open_socket(context, zmq.DEALER, limits, 0)
    socket.routing_id = session.encode()
    socket.rcvtimeo = _STEP_WAIT_MS
    return _connect(socket, host, port, peer)


def _connect(socket: Socket, host: str, port: int, peer: Dialling) -> Socket:
    if peer.watched:  # from the first event on: some come once
        socket.get_monitor_socket(_HANDSHAKES, f"inproc://handshakes-{os.urandom(8).hex()}")
    if key := peer.key:
        socket.curve_publickey, socket.curve_secretkey = key.pair.public.encode(), key.pair.secret.encode()
        socket.curve_serverkey = key.server.encode()
    socket.connect_timeout = _CONNECT_MS
    socket.tcp_maxrt = _UNACKNOWLEDGED_MS
    return _dial(socket, host, port)


def redial(socket: Socket, host: str, port: int) -> None:
    """Leave the learner that a worker's socket is connected to, and what queues for it; turn to this one."""
    socket.disconnect(socket.get_string(zmq.LAST_ENDPOINT))
    _dial(socket, host, port)


def _dial(socket: Socket, host: str, port: int) -> Socket:
    # With IPv6 on, libzmq takes a name's IPv6 address only: "localhost" would miss a learner on 127.0.0.1.
    # A name that does not resolve (yet) is looked up again at each attempt to connect.
    try:
        socket.ipv6 = ":" in resolve(host)
    except UserError:
        socket.ipv6 = False
    socket.connect(endpoint(host, port))
    return socket
