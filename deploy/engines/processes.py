"""Processes of this machine that outlive whoever started them, and that anyone finds again by name.

Each holds a lock on a file of its name from before its birth to its death, and wrote its id into it. So what
is locked lives, what is not has ended, and a process id that was given to another is never mistaken for it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from protocol.errors import UserError

_NOTE_AND_BECOME = 'echo $$ > "$0" && exec "$@"'
"""Shell: the process id is on the disk before the program begins, whatever becomes of its starter."""
_LOOKS, _LOOK_SECONDS = 100, 0.01


class KeptProcesses:
    """Processes with their files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Start a process in a session of its own, its output appended to `log`; return its id.

        Raises UserError where it cannot be started, or lives already.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            log.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._lock(lock, name)
                os.ftruncate(lock, 0)  # the id of one before it under this name
                with log.open("ab") as output:
                    child = subprocess.Popen(
                        ["/bin/sh", "-c", _NOTE_AND_BECOME, str(self.folder / name), *command],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        pass_fds=(lock,),
                        start_new_session=True,
                    )
            finally:
                os.close(lock)
        except OSError as error:
            raise UserError(f"{name} cannot be started: {error.strerror}: {error.filename}") from error
        self._children[name] = child
        return child.pid

    def living(self) -> dict[str, int]:
        """Return the process ids of those that live, by name."""
        for child in self._children.values():
            child.poll()  # so that no zombie stays
        return {name: self._process_id(name) for name in self.names() if self._held(name)}

    def names(self) -> list[str]:
        """Return all that were started and not forgotten."""
        return sorted(file.name for file in self.folder.glob("*")) if self.folder.exists() else []

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal, SIGKILL to all of its session; nothing where it has ended."""
        process_id = self._process_id(name) if self._held(name) else 0
        if not process_id:
            return
        try:
            if number == signal.SIGKILL:
                os.killpg(process_id, number)
            else:
                os.kill(process_id, number)
        except ProcessLookupError:
            pass

    def forget(self, name: str) -> int | None:
        """Remove the file of one that has ended; return its status where this process started it."""
        (self.folder / name).unlink(missing_ok=True)
        child = self._children.pop(name, None)
        return child.wait() if child else None

    def _lock(self, lock: int, name: str) -> None:
        """Lock a file that others may be looking at just now. Raises UserError where its process lives."""
        for _ in range(_LOOKS):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(_LOOK_SECONDS)
        raise UserError(f"{name} is running already")

    def _held(self, name: str) -> bool:
        return is_locked(self.folder / name)

    def _process_id(self, name: str) -> int:
        """Return the id that a living process wrote; it does so as its first act. 0 if it has none."""
        for _ in range(_LOOKS):
            try:
                text = (self.folder / name).read_text()
            except FileNotFoundError:
                return 0
            if text.endswith("\n"):
                return int(text)
            if not self._held(name):
                return 0
            time.sleep(_LOOK_SECONDS)
        return 0


def is_locked(path: Path) -> bool:
    """Return whether another open file holds the lock of a file."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(file)


def last_lines(log: Path, lines: int, most_bytes: int = 1 << 20) -> str:
    """Return the last lines of a file, "" where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
