"""The sockets of a learner: they listen."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import zmq

from protocol.addresses import Ports, endpoint, free_blocks, is_loopback, resolve
from protocol.errors import UserError
from protocol.keys import KeyPair
from protocol.schema import DEFAULT, Limits
from protocol.sockets import Context, Socket
from protocol.sockets.options import CONTROL_LINGER_MS, open_socket

SocketName = Literal["control", "weights", "episodes", "step"]

ZAP_DOMAIN = b"fleet"
_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_UNREAD_MS = 60_000  # a peer that reads nothing for this long loses its connection, and what queues there
_REOPEN_SECONDS = 5.0  # after its socket is closed a port is free within milliseconds


@dataclass(frozen=True, slots=True)
class Listening:
    """How a learner listens: in the clear on loopback only, unless told otherwise."""

    insecure: bool = False
    """In the clear on any address."""
    security: KeyPair | None = None
    """The learner's own pair: nothing is in the clear, and `protocol.zap` says who is let in."""
    limits: Limits = DEFAULT


_LOOPBACK = Listening()


@dataclass(slots=True)
class LearnerSockets:
    """What a learner listens on; closes in a with-block."""

    ports: Ports
    control: Socket
    weights: Socket
    episodes: Socket
    step: Socket
    bind_again: Callable[[SocketName], Socket] = field(repr=False)
    secured: bool = False
    """Whether every frame names its sender's key."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for socket in (self.step, self.episodes, self.weights, self.control):
            socket.close()

    def reopen(self, *names: SocketName) -> None:
        """Close all connections of some sockets and listen again; peers come back by themselves.

        To be called by the thread that uses them. PortInUse where another process was faster.
        """
        for name in names:
            getattr(self, name).close()
        deadline = time.monotonic() + _REOPEN_SECONDS
        for name in names:
            setattr(self, name, self._bound_again(name, deadline))

    def _bound_again(self, name: SocketName, deadline: float) -> Socket:
        while True:
            try:
                return self.bind_again(name)
            except PortInUse:  # libzmq frees a port some time after its socket is closed
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.005)


def bind_learner(
    context: Context,
    host: str,
    ports: Ports | None,
    *,
    insecure: bool = False,
    security: KeyPair | None = None,
    limits: Limits = DEFAULT,
) -> LearnerSockets:
    """Bind all sockets of a learner; `ports` None takes four free ports in a row.

    With `security`, the learner's own pair, they speak CURVE, and let nobody in while no
    `protocol.zap.Doorkeeper` serves the context. UserError where a port is in use, `host` is no address of
    this host, or it is no loopback address and neither `security` nor `insecure` is given.
    """
    listening = Listening(insecure, security, limits)
    for block in free_blocks(host) if ports is None else (ports,):

        def bind(name: SocketName, block: Ports = block) -> Socket:
            return _BINDERS[name](context, host, getattr(block, name), listening)

        with ExitStack() as opened:
            try:
                control, weights, episodes, step = (opened.enter_context(bind(name)) for name in _BINDERS)
            except PortInUse:
                if ports is None:
                    continue
                raise
            opened.pop_all()
            return LearnerSockets(block, control, weights, episodes, step, bind, security is not None)
    raise UserError(f"no four free ports in a row on {host}: name one with --port")


class PortInUse(UserError):
    """A port that another process listens on."""


def bind_control(context: Context, host: str, port: int, listening: Listening = _LOOPBACK) -> Socket:
    """Return the learner's ROUTER. MANDATORY lets a full peer block it: send with `send_nowait` only."""
    socket = open_socket(context, zmq.ROUTER, listening.limits, CONTROL_LINGER_MS)
    socket.router_mandatory = True
    socket.router_handover = True  # as on step
    return _bind(socket, host, port, listening)


def bind_weights(context: Context, host: str, port: int, listening: Listening = _LOOPBACK) -> Socket:
    """Return the learner's PUB; a slow subscriber gets the newest frame, one that comes late gets none.

    A frame that is sent just while a subscriber's pipe is read waits there for the next one: answers name the
    newest version, and who misses it asks for a snapshot.
    """
    socket = open_socket(context, zmq.PUB, listening.limits, 0)
    socket.conflate = True
    return _bind(socket, host, port, listening)


def bind_episodes(context: Context, host: str, port: int, listening: Listening = _LOOPBACK) -> Socket:
    """Return the learner's PULL."""
    return _bind(open_socket(context, zmq.PULL, listening.limits, 0), host, port, listening)


def bind_step(context: Context, host: str, port: int, listening: Listening = _LOOPBACK) -> Socket:
    """Return the learner's second ROUTER. A worker is known by its session, also when it reconnects."""
    socket = open_socket(context, zmq.ROUTER, listening.limits, 0)
    socket.router_mandatory = True
    socket.router_handover = True  # or one that comes back is ignored while its old connection seems open
    return _bind(socket, host, port, listening)


_BINDERS: Mapping[SocketName, Callable[[Context, str, int, Listening], Socket]] = {
    "control": bind_control,
    "weights": bind_weights,
    "episodes": bind_episodes,
    "step": bind_step,
}


def bind_zap(context: Context) -> Socket:
    """Return the socket on which ZeroMQ asks who may come in. UserError where the context has one."""
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    try:
        socket.bind(_ZAP_ADDRESS)
    except zmq.ZMQError as error:
        socket.close()
        raise UserError("two learners with keys cannot share one ZeroMQ context") from error
    return socket


def _bind(socket: Socket, host: str, port: int, listening: Listening) -> Socket:
    try:
        address = resolve(host)
        if listening.security:
            socket.curve_server, socket.curve_secretkey = True, listening.security.secret.encode()
            socket.zap_domain = ZAP_DOMAIN
            socket.zap_enforce_domain = True  # without an answer nobody is let in
        elif not is_loopback(address) and not listening.insecure:
            raise UserError(
                f"other hosts reach {host}: make a key for each of them with fleet keys new NAME, or add"
                " --insecure on a network where you trust everyone"
            )
        if socket.type in (zmq.ROUTER, zmq.PUB):  # a PULL sends nothing
            socket.tcp_maxrt = _UNREAD_MS
        socket.ipv6 = ":" in address
        socket.bind(endpoint(address, port))
    except UserError:
        socket.close()
        raise
    except zmq.ZMQError as error:
        socket.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} is in use on this host: choose another with --port, or --port auto"
            ) from error
        raise UserError(f"cannot listen on {host}, port {port}: {zmq.strerror(error.errno or 0)}") from error
    return socket
