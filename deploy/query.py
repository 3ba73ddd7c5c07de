"""Questions and commands to a live learner, over its control port."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import zmq

from deploy.access import read_key
from deploy.live import run_at
from protocol.addresses import parse_address
from protocol.codec import decode, encode
from protocol.errors import ProtocolError, UserError
from protocol.handshakes import Handshakes
from protocol.messages import Command, LogRequest, Query, Report
from protocol.sockets.frames import receive_nowait, send_nowait
from protocol.sockets.worker import Dialling, connect_control

ANSWER_SECONDS = 3.0
_TURN_MILLISECONDS = 20


def ask(address: str, what: Literal["ledger", "status"], key: Path | None = None) -> Mapping[str, Any]:
    """Return the report of the learner at HOST:PORT, asked with a key file or with that of FLEET_KEY.

    That of the status tells of all workers. Raises UserError if none answers in time, or why it lets nobody
    in with this key.
    """
    with Line(address, key) as line:
        return line.status() if what == "status" else line.ask(Query(what))


class NoAnswer(UserError):
    """No learner answered in time."""


class Line:
    """A connection to the learner at HOST:PORT, with a key file or with that of FLEET_KEY."""

    def __init__(self, address: str, key: Path | None = None) -> None:
        self.address = address
        host, port = parse_address(address)
        peer = Dialling(read_key(key, address), watched=True)
        with ExitStack() as opened:
            context = opened.enter_context(zmq.Context())
            try:
                self._socket = opened.enter_context(connect_control(context, host, port, peer))
            except (zmq.ZMQError, UnicodeError) as error:
                raise UserError(f"{address!r} is no address that can be dialled: {error}") from error
            self._handshakes = Handshakes(self._socket, keyed=peer.key is not None)
            opened.callback(self._handshakes.close)
            self._opened = opened.pop_all()

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def ask(
        self, message: Query | Command | LogRequest, seconds: float = ANSWER_SECONDS
    ) -> Mapping[str, Any]:
        """Return the learner's report. Raises UserError if there is none in time or it tells of an error."""
        deadline = time.monotonic() + seconds
        while receive_nowait(self._socket):  # what came too late
            pass
        while self._connected(deadline) and send_nowait(self._socket, encode(message)):
            if not self._answered(deadline):
                continue  # once more: the connection was closed, and with it the question or its answer
            received = receive_nowait(self._socket)
            try:
                answer = decode(received[1]) if received else None
            except ProtocolError as error:
                raise UserError(f"{self.address} did not answer as a learner does: {error}") from error
            if isinstance(answer, Report):
                if set(answer.content) == {"error"}:
                    raise UserError(
                        f"the learner at {self.address} does not do that: {answer.content['error']}"
                    )
                return answer.content
        run = run_at(self.address)
        where = f"{self.address}, where {run} listens or listened," if run else self.address
        raise NoAnswer(
            f"no learner answered at {where} within {seconds:g} s: is it running, and is this the "
            "first of its ports? (runs/NAME/address says; fleet doctor finds out more)"
        )

    def status(self) -> Mapping[str, Any]:
        """Return the report of the status with all workers, one page after the other."""
        first = report = self.ask(Query("status"))
        workers = list(report["workers"])
        while following := report.get("next", 0):
            report = self.ask(Query("status", following))
            workers += report["workers"]
        return {**first, "workers": workers}

    def _connected(self, deadline: float) -> bool:
        while time.monotonic() < deadline:
            if self._socket.poll(_TURN_MILLISECONDS, zmq.POLLOUT):
                return True
            self._check_handshakes()
        return False

    def _answered(self, deadline: float) -> bool:
        """Wait for an answer; False at the deadline, and where there is another connection by then."""
        connections = 0
        while time.monotonic() < deadline:
            if self._socket.poll(_TURN_MILLISECONDS):
                return True
            self._check_handshakes()
            connections = connections or self._handshakes.connections
            if self._handshakes.connections > connections:
                return False
        return False

    def _check_handshakes(self) -> None:
        if (fault := self._handshakes.fault()) is not None:
            raise UserError(f"{self.address}: {fault.reason}")
