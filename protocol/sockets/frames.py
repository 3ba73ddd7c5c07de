"""How frames go out and come in, on any of the sockets."""

from __future__ import annotations

import zmq

from protocol.sockets import Socket

# As plain integers: pyzmq's enumerations cost as much as the calls they go to.
_DONTWAIT, _SNDMORE = int(zmq.DONTWAIT), int(zmq.SNDMORE)
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)


def send_nowait(socket: Socket, *parts: bytes) -> bool:
    """Send a frame (on a ROUTER: identity, frame), or return False: the peer is unknown, gone or too slow."""
    *first, last = parts
    try:
        for part in first:
            socket.send(part, _DONTWAIT | _SNDMORE)
        socket.send(last, _DONTWAIT)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True


def receive_nowait(socket: Socket) -> tuple[bytes, bytes] | None:
    """Return (identity, frame), the identity empty except on a ROUTER, or None where nothing has arrived.

    A foreign multipart message comes back as an empty frame, which no message is.
    """
    if not int(socket.getsockopt(_EVENTS)) & _POLLIN:  # cheaper than the exception of a vain attempt
        return None
    identity, parts = _receive(socket)
    return identity, parts[0].bytes if len(parts) == 1 else b""


def receive_keyed(socket: Socket) -> tuple[bytes, bytes, str] | None:
    """Return (identity, frame, sender's public key) on a learner's socket that speaks CURVE; else as above.

    Raises zmq.ZMQError on any other socket, where no frame has a sender.
    """
    if not int(socket.getsockopt(_EVENTS)) & _POLLIN:
        return None
    identity, parts = _receive(socket)
    key = str(parts[-1].get("User-Id")) if parts else ""
    return identity, parts[0].bytes if len(parts) == 1 else b"", key


def receive_parts(socket: Socket) -> list[bytes]:
    """Return a message of several parts that has arrived."""
    return socket.recv_multipart(_DONTWAIT)


def _receive(socket: Socket) -> tuple[bytes, list[zmq.Frame]]:
    parts = [socket.recv(_DONTWAIT, copy=False)]
    while parts[-1].more:
        parts.append(socket.recv(_DONTWAIT, copy=False))
    return parts.pop(0).bytes if socket.type == zmq.ROUTER else b"", parts


def receive_soon(socket: Socket) -> bytes | None:
    """Return the next frame on a step DEALER, or None where none comes for a tenth of a second."""
    try:
        return socket.recv()
    except zmq.Again:
        return None
