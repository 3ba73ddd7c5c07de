"""Who is let in: ZeroMQ asks this thread at every handshake (ZAP, https://rfc.zeromq.org/spec/27/).

A learner's sockets refuse everyone while nobody answers, so a doorkeeper that has ended lets nobody in.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

import zmq
from zmq.utils import z85

from protocol.sockets import Context
from protocol.sockets.frames import receive_parts
from protocol.sockets.learner import ZAP_DOMAIN, bind_zap

logger = logging.getLogger(__name__)

Admit = Callable[[str], bool]
"""Says whether the owner of a public key may come in; called in the doorkeeper's thread."""

_TURN_MILLISECONDS = 100
_VERSION = b"1.0"


def reply(request: Sequence[bytes], admit: Admit) -> list[bytes]:
    """Return the answer to a ZAP request; who is let in bears its public key as the User-Id.

    `request` is version, request id, domain, address, routing id, mechanism and credentials.
    """
    number = request[1] if len(request) > 1 else b""
    if len(request) == 7 and request[0] == _VERSION and request[2] == ZAP_DOMAIN:
        mechanism, credentials = request[5:]
        if mechanism == b"CURVE" and len(credentials) == 32:
            public = z85.encode(credentials)
            if admit(public.decode()):
                return [_VERSION, number, b"200", b"", public, b""]
    return [_VERSION, number, b"400", b"", b"", b""]


class Doorkeeper:
    """Answers a context's ZAP requests in a thread of its own, from `__enter__` to `__exit__`."""

    def __init__(self, context: Context, admit: Admit) -> None:
        self._admit, self._refused = admit, 0
        self._socket = bind_zap(context)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="doorkeeper", daemon=True)

    def __enter__(self) -> Doorkeeper:
        """Begin to let in."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; nobody is let in any more."""
        self._over.set()
        self._thread.join()

    def _serve(self) -> None:
        try:
            while not self._over.is_set():
                if self._socket.poll(_TURN_MILLISECONDS):
                    self._answer(receive_parts(self._socket))
        except zmq.ContextTerminated:
            pass
        finally:
            self._socket.close()

    def _answer(self, parts: list[bytes]) -> None:
        peer, delimiter, *request = parts
        try:
            answer = reply(request, self._admit)
        except Exception:  # a door that fails stays shut
            logger.exception("a key could not be looked up")
            answer = reply(request, lambda public: False)
        if answer[2] != b"200":
            self._tell(request)
        self._socket.send_multipart([peer, delimiter, *answer])

    def _tell(self, request: list[bytes]) -> None:
        """Say who is refused the 1st, 10th, 100th time, so that a flood cannot fill the disk."""
        self._refused += 1
        if self._refused == 10 ** (len(str(self._refused)) - 1):
            address = request[3].decode("ascii", "replace") if len(request) > 3 else "?"
            credentials = request[6] if len(request) > 6 else b""
            key = z85.encode(credentials).decode() if len(credentials) == 32 else "none"
            logger.warning("refused connection number %d, from %s, key %s", self._refused, address, key)
