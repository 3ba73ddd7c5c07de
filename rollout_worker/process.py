"""What a worker asks of its operating system: no orphans, precise waits, its memory, a log."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path

from protocol.errors import UserError
from rollout_worker.log_ring import LogRing


def terminate_with_parent() -> None:
    """Ask for SIGTERM at the death of the thread that started this process; Linux only."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def wake_precisely() -> None:
    """End this thread's timed waits when they are due, not up to 50 µs later; Linux only."""
    if sys.platform == "linux":
        pr_set_timerslack, nanoseconds = 29, 1
        ctypes.CDLL(None).prctl(pr_set_timerslack, nanoseconds)


def resident_bytes() -> int:
    """Return this process's memory; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def configure_logging(level: str, file: Path | None) -> LogRing:
    """Log to standard error, to the ring returned and, if given, to a file.

    UserError for an unknown level or an unwritable file.
    """
    if level.upper() not in logging.getLevelNamesMapping():
        raise UserError(f"--log-level is {level!r}; it must be debug, info, warning or error")
    ring = LogRing()
    handlers: list[logging.Handler] = [logging.StreamHandler(), ring]
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(file))
        except OSError as error:
            raise UserError(f"--log-file {file} cannot be written: {error.strerror}") from error
    form = f"%(asctime)s worker {os.getpid()} %(levelname)s: %(message)s"
    logging.basicConfig(level=level.upper(), format=form, handlers=handlers, force=True)
    return ring
