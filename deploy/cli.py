"""Where the `fleet` command enters: an interrupt is heard from here on, before anything large is imported."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command of this process's arguments and end the process with its status.

    It ends without Python's own farewell: all is closed by then, and after torch that takes half a second.
    """
    signal.signal(signal.SIGINT, _interrupted)
    from deploy.app import run_command

    status = int(run_command())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # its reader has gone, as `head` does
            stream.flush()
    os._exit(status)


def _interrupted(number: int, frame: object) -> None:
    """End at once, where nothing is begun that wants to be ended in order; a run has a handler of its own."""
    os.write(2, b"fleet: interrupted\n")
    os._exit(_INTERRUPTED)
