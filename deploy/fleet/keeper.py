"""A thread that keeps something as it is wanted: look, reconcile, carry out.

Each has its own, so that an engine that takes long, or hangs, holds up nobody else. What is wanted goes in as
an immutable order, what is seen comes out as a mapping that is never changed: no lock is needed for either.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress

from protocol.errors import UserError

logger = logging.getLogger(__name__)

_TURN_SECONDS = 1.0
_QUICK_TURN_SECONDS = 0.2
"""After a turn in which something was done."""


class Keeper(threading.Thread, ABC):
    """A thread that calls `turn` until it is told to end."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.error = ""
        """Why the last turn failed."""
        self.began = 0.0
        """When the present turn began; 0 between turns."""
        self._wake, self._ends = threading.Event(), threading.Event()

    @abstractmethod
    def turn(self) -> bool:
        """Look and act once; return whether something was done. Raises UserError where it cannot."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held."""

    def run(self) -> None:
        """Take turns."""
        while not self._ends.is_set():
            self._wake.clear()
            self.began, acted = time.monotonic(), False
            try:
                acted = self.turn()
                self.error = ""
            except UserError as error:
                self._complain(str(error))
            except OSError as error:
                self._complain(f"{error.strerror}: {error.filename}")
            except Exception as error:
                self._complain(f"unexpected {error!r}: this is a bug, the traceback is in the log", error)
            self.began = 0.0
            self._wake.wait(_QUICK_TURN_SECONDS if acted else _TURN_SECONDS)
        with suppress(UserError):
            self.close()

    def wake(self) -> None:
        """Take the next turn now."""
        self._wake.set()

    def end(self) -> None:
        """Take no further turn."""
        self._ends.set()
        self._wake.set()

    def _complain(self, text: str, bug: Exception | None = None) -> None:
        if text != self.error:
            logger.warning("%s: %s", self.name, text, exc_info=bug)
        self.error = text
