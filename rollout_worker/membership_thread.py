"""The membership thread: it speaks with the learner, and hears signals, while the main thread plays."""

from __future__ import annotations

import logging
import math
import os
import time
from typing import Self

import zmq

from protocol.addresses import Ports
from protocol.codec import decode, encode
from protocol.errors import ProtocolError, VersionMismatch
from protocol.handshakes import Handshakes
from protocol.messages import Answer, Goodbye, HelloAgain, LogLines, LogRequest, Refuse, Weights, Welcome
from protocol.sockets import Context, Socket
from protocol.sockets.frames import receive_nowait, send_nowait
from protocol.sockets.worker import Dialling, connect_control, connect_episodes, connect_weights, redial
from rollout_worker.events import ExitCode, Stop, Telemetry, Terminate, Tick
from rollout_worker.exchange import Exchange
from rollout_worker.log_ring import LogRing
from rollout_worker.process import resident_bytes
from rollout_worker.signals import Signals

logger = logging.getLogger("rollout_worker")

_LAST_WORD_SECONDS = 0.4
"""A main thread that an environment holds up for longer at the end is not waited for."""


class Sockets:
    """What the membership thread speaks over, and what it hears of their handshakes."""

    def __init__(self, control: Socket, weights: Socket, episodes: Socket, *, keyed: bool) -> None:
        self.control, self.weights, self.episodes = control, weights, episodes
        self.handshakes = [Handshakes(socket, keyed=keyed) for socket in (control, weights, episodes)]

    @classmethod
    def connect(cls, context: Context, host: str, ports: Ports, peer: Dialling) -> Self:
        """Connect to the learner at this place; `peer` is watched."""
        return cls(
            connect_control(context, host, ports.control, peer),
            connect_weights(context, host, ports.weights, peer),
            connect_episodes(context, host, ports.episodes, peer),
            keyed=peer.key is not None,
        )

    def dial(self, host: str, ports: Ports) -> None:
        """Leave the learner that they are connected to, and turn to this one."""
        redial(self.control, host, ports.control)
        redial(self.weights, host, ports.weights)
        redial(self.episodes, host, ports.episodes)

    def close(self) -> None:
        """Only a goodbye may linger: the outbox was waited for."""
        for handshakes in self.handshakes:
            handshakes.close()
        self.weights.close(linger=0)
        self.episodes.close(linger=0)
        self.control.close()


class MembershipThread:
    """Keeps up the membership; `learner` is where it is looked for, `log` what it may ask to see."""

    def __init__(
        self, exchange: Exchange, sockets: Sockets, signals: Signals, log: LogRing, learner: str
    ) -> None:
        self._exchange, self._sockets, self._signals = exchange, sockets, signals
        self._log, self._learner = log, learner
        self._told_of_hang_ups = False

    def run(self) -> None:
        """Keep up the membership, until it is over."""
        exchange = self._exchange
        try:
            self._converse(self._sockets)
        except Exception:
            logger.exception("the membership failed")
            with exchange.changed:
                exchange.stop = Stop(ExitCode.ERROR, "the membership failed; its traceback is in this log")
                exchange.changed.notify()
        finally:
            self._sockets.close()
        if not exchange.worked.wait(_LAST_WORD_SECONDS):
            assert exchange.stop is not None
            reason, code = exchange.stop.reason, exchange.stop.code
            logger.warning(
                "ends: %s (exit status %d), while an environment holds up its thread", reason, code
            )
            logging.shutdown()
            os._exit(code)

    def _converse(self, sockets: Sockets) -> None:
        exchange, poller = self._exchange, zmq.Poller()
        news = [handshakes.readable for handshakes in sockets.handshakes]
        for source in (sockets.control, sockets.weights, self._signals.pipe.readable, *news):
            poller.register(source, zmq.POLLIN)
        while True:
            due = exchange.next_tick()
            poller.poll(math.ceil(min(max(due - time.monotonic(), 0.0), 1.0) * 1000))
            for event in self._signals.events():
                exchange.post([event])
            self._heed_handshakes()
            for socket in (sockets.control, sockets.weights):
                while (received := receive_nowait(socket)) is not None:
                    self._hear(received[1])
            if time.monotonic() >= due:
                exchange.post([Tick(self._telemetry())])
            self._send(sockets)
            if exchange.outbox.full:
                poller.register(sockets.episodes, zmq.POLLOUT)
            elif sockets.episodes in poller:
                poller.unregister(sockets.episodes)
            if exchange.stop:
                return

    def _heed_handshakes(self) -> None:
        """Say why no connection comes about; end where none ever will, for what runs this worker to see."""
        for handshakes in self._sockets.handshakes:
            if fault := handshakes.fault():
                reason = f"{self._learner}: {fault.reason}"
                if fault.final and "," not in self._learner:  # else the next address has its turn
                    self._exchange.post([Terminate(reason, ExitCode.REFUSED)])
                elif not self._told_of_hang_ups:
                    logger.warning("%s; trying again", reason)
                    self._told_of_hang_ups = True

    def _send(self, sockets: Sockets) -> None:
        exchange = self._exchange
        while exchange.dials:
            sockets.dial(*exchange.dials.popleft())
        while exchange.messages:
            send_nowait(sockets.control, encode(exchange.messages.popleft()))
        exchange.outbox.send(sockets.episodes)

    def _hear(self, frame: bytes) -> None:
        exchange = self._exchange
        try:
            message = decode(frame)
            match message:
                case Weights():
                    exchange.take_weights(message)
                case Welcome() | Refuse() | HelloAgain() | Answer() | Goodbye():
                    exchange.post([message])
                case LogRequest(lines, _, number, most_bytes):
                    answer = LogLines(exchange.session, number, self._log.last(lines, most_bytes))
                    with exchange.changed:
                        exchange.messages.append(answer)
                case _:
                    raise ProtocolError(f"a learner does not send {type(message).__name__}")
        except VersionMismatch as error:
            exchange.post([Refuse(str(error))])
        except ProtocolError as error:
            exchange.reject(error)

    def _telemetry(self) -> Telemetry:
        work = self._exchange.work
        return Telemetry(
            passes=work.passes if work else 0,
            steps=work.steps if work else 0,
            inside=work.inside if work else False,
            rejected=self._exchange.rejected,
            cpu_seconds=time.process_time(),
            resident_bytes=resident_bytes(),
        )
