"""Who listens on a TCP port: as much of ZeroMQ's protocol (ZMTP 3.1, rfc.zeromq.org/spec/37) as tells."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_VERSION = b"\3\1"
_NULL = b"NULL".ljust(20, b"\0") + bytes(32)
"""Mechanism, and that this is no server."""
_GREETING_BYTES = 64
_COMMAND = 0x04
_MOST_READY_BYTES = 255


class Unreachable(Exception):
    """Nobody is to be reached there; says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Listener:
    """What a ZeroMQ socket says of itself."""

    mechanism: str
    """NULL speaks in the clear, CURVE is encrypted."""
    kind: str
    """Its type, such as ROUTER; empty where it tells only those that it lets in."""


def greet(host: str, port: int, seconds: float) -> Listener:
    """Connect, exchange greetings and hang up. Raises Unreachable."""
    deadline = time.monotonic() + seconds
    try:
        with socket.create_connection((host, port), seconds) as connection:
            connection.sendall(_SIGNATURE + _VERSION)  # the rest later: it hangs up at a wrong mechanism
            greeting = _read(connection, _GREETING_BYTES, deadline)
            if greeting[0] != 0xFF or greeting[9] & 1 != 1:
                raise Unreachable("something else listens there, no ZeroMQ: is it the learner's port?")
            mechanism = greeting[12:32].rstrip(b"\0").decode("ascii", "replace")
            if mechanism != "NULL":
                return Listener(mechanism, "")
            connection.sendall(_NULL)
            kind = _socket_type(connection, deadline)
            return Listener(mechanism, kind)
    except ConnectionRefusedError:
        raise Unreachable("connection refused: nothing listens there; does the learner run?") from None
    except TimeoutError:
        raise Unreachable(
            f"timed out after {seconds:g} s: a firewall? let this host reach all four ports"
        ) from None
    except socket.gaierror:
        raise Unreachable(f"there is no host called {host}: is it spelt right?") from None
    except OSError as error:
        raise Unreachable(f"{(error.strerror or str(error)).lower()}: is the network up?") from None


def _read(connection: socket.socket, count: int, deadline: float) -> bytes:
    """Read exactly `count` bytes."""
    received = b""
    while len(received) < count:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            more = connection.recv(count - len(received))
        except TimeoutError:
            raise Unreachable("it accepts connections and says nothing: no ZeroMQ, or it hangs") from None
        except ConnectionResetError:
            more = b""
        if not more:
            raise Unreachable("something else listens there, it hung up: is it the learner's port?")
        received += more
        if received[0] != 0xFF:
            raise Unreachable("something else listens there, no ZeroMQ: is it the learner's port?")
    return received


def _socket_type(connection: socket.socket, deadline: float) -> str:
    """Return the Socket-Type that a READY command names, empty where none comes."""
    received = b""
    try:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        while len(received) < 2 or len(received) < 2 + received[1]:
            more = connection.recv(_MOST_READY_BYTES)
            if not more:
                return ""
            received += more
    except OSError:
        return ""
    if received[0] != _COMMAND or received[2:8] != b"\5READY":
        return ""
    rest = received[8 : 2 + received[1]]
    while len(rest) > 5:
        name, rest = rest[1 : 1 + rest[0]], rest[1 + rest[0] :]
        (size,) = struct.unpack(">I", rest[:4].ljust(4, b"\0"))
        value, rest = rest[4 : 4 + size], rest[4 + size :]
        if name.lower() == b"socket-type":
            return value.decode("ascii", "replace")
    return ""
