"""What the signals that a worker gets ask for, and signals that always arrive."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator

from rollout_worker.events import Drain, Event, Terminate
from rollout_worker.process import terminate_with_parent

INSISTS_SECONDS = 1.0
"""A SIGTERM this long after the first ends a drain."""


class WakePipe:
    """Ends another thread's poll of `readable`; the signals given to it come through as well.

    Make it in the main thread. The C part of a signal's handling writes to the pipe, so a signal is heard
    even while the main thread is inside an environment that never returns.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self.readable, self._writable = os.pipe()
        os.set_blocking(self.readable, False)
        os.set_blocking(self._writable, False)
        for number in signals:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._writable, warn_on_full_buffer=False)

    def wake(self) -> None:
        """End the poll."""
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._writable, b"\0")

    def read(self) -> list[signal.Signals]:
        """Empty the pipe; return the signals that came."""
        written = b""
        with contextlib.suppress(BlockingIOError):
            written = os.read(self.readable, 4096)
        return [signal.Signals(number) for number in written.replace(b"\0", b"")]


class Signals:
    """What signals, and the end of the parent process, ask of a worker; `pipe` says that there is news."""

    def __init__(self, drain_on_term_seconds: float, die_with_parent: bool) -> None:
        self.pipe = WakePipe(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        self._drain_on_term_seconds, self._die_with_parent = drain_on_term_seconds, die_with_parent
        self._terminated_at = math.inf
        """When the first SIGTERM came."""
        self._parent = os.getppid()
        if die_with_parent:
            terminate_with_parent()

    def events(self) -> Iterator[Event]:
        """Yield what is asked for since the last time."""
        for number in self.pipe.read():
            yield self._wish(number, time.monotonic())
        if self._die_with_parent and os.getppid() != self._parent:
            yield Terminate("the process that started this worker is gone")

    def _wish(self, number: signal.Signals, now: float) -> Event:
        """Return what a signal asks for; a batch system may send SIGTERM twice and mean one."""
        if number is signal.SIGUSR1:
            return Drain(number.name)
        limit_seconds = self._drain_on_term_seconds
        if number is signal.SIGTERM and limit_seconds:
            self._terminated_at = min(self._terminated_at, now)
            if now - self._terminated_at < INSISTS_SECONDS:
                return Drain(number.name, limit_seconds)
        return Terminate(number.name)
