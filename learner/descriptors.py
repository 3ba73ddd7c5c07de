"""File descriptors kept back for the learner's own files: connections, which anyone can open, take the rest.

The limit of this process, up to which libzmq accepts, stays a few below the hard one, and is raised to it
for the moment in which a file is opened. Connections that slip in meanwhile are shut down after it.
"""

from __future__ import annotations

import errno
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

KEPT_BACK = 64
_PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.01
_one_at_a_time = threading.RLock()


def keep_back() -> None:
    """Let this process open as many files as the system lets it, but for a few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        _limit(most if most == resource.RLIM_INFINITY else max(most - KEPT_BACK, most // 2), most)


def with_room(act: Callable[[], T]) -> T:
    """Return what `act` does, which is brief and opens files; it is repeated while there is no room at all.

    What it opens may stay open. Raises OSError as `act` does, EMFILE after ten seconds.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return _in_the_rest(act)
        except OSError as error:
            if error.errno != errno.EMFILE or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


def _in_the_rest(act: Callable[[], T]) -> T:
    with _one_at_a_time:
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit == most:
            return act()
        _limit(most, most)
        try:
            return act()
        finally:
            _limit(limit, most)
            _disconnect(range(limit, min(most, limit + KEPT_BACK)))


def _limit(now: int, most: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (now, most))


def _disconnect(numbers: Iterable[int]) -> None:
    """Shut down the connections with these numbers; libzmq, whose they are, then closes them."""
    for number in numbers:
        try:
            found = socket.socket(fileno=number)
        except OSError:  # no socket, or nothing
            continue
        with suppress(OSError):
            if found.family in (socket.AF_INET, socket.AF_INET6) and not found.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            ):
                found.shutdown(socket.SHUT_RDWR)
        found.detach()
