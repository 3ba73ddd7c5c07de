"""The engine of this machine: worker processes that outlive their supervisor, with a core each if told so."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.engines import Member, WorkerLaunch, worker_arguments
from deploy.engines.processes import KeptProcesses, last_lines
from deploy.local import SINGLE_THREADED
from protocol.errors import UserError

PROCESSES = Path("fleet") / "processes"
"""Where, in a run's folder, its processes on this machine are kept."""
_TOLD_LINES = 3


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What a pool of this engine may be told."""

    pin: bool = False
    """Keep each worker on one core, the one with the fewest of this run's workers."""


def worker_command(launch: WorkerLaunch, name: str) -> list[str]:
    """Return the command that is a worker of this machine."""
    # -P: a folder of ours in the user's working directory is not this program.
    return [sys.executable, "-P", "-m", "rollout_worker", *worker_arguments(launch, name)]


class LocalEngine:
    """Workers of a pool as processes of this machine, their logs in the run's `logs/NAME.log`."""

    def __init__(self, launch: WorkerLaunch, options: LocalOptions, folder: Path) -> None:
        self._launch, self._options, self._folder = launch, options, folder
        self._processes = KeptProcesses(folder / PROCESSES)
        self._mine = re.compile(re.escape(launch.pool) + r"-\d+")
        self._host = socket.gethostname()

    def members(self) -> Sequence[Member]:
        """Return the living, and those whose end nobody has seen yet."""
        living = self._processes.living()
        return [
            Member(name, self._host, "running") if name in living else self._ended(name)
            for name in self._processes.names()
            if self._mine.fullmatch(name)
        ]

    def start(self, names: Sequence[str], avoid: Collection[str] = ()) -> Sequence[Member]:
        """Start processes; there is one host, so one to avoid leaves none."""
        return [self._start(name, avoid) for name in names]

    def stop(self, names: Collection[str], *, kill: bool = False) -> None:
        """Signal processes."""
        for name in names:
            self._processes.signal(name, signal.SIGKILL if kill else signal.SIGTERM)

    def log(self, name: str, lines: int) -> str:
        """Return the end of a log; "" where there is none."""
        return last_lines(self._log(name), lines) if self._mine.fullmatch(name) else ""

    def close(self) -> None:
        """Nothing is held."""

    def _start(self, name: str, avoid: Collection[str]) -> Member:
        if self._host in avoid:
            return Member(name, "", "failed", f"{self._host}, the only host, is put aside")
        core = self._core() if self._options.pin else None
        try:
            process_id = self._processes.start(
                name, worker_command(self._launch, name), {**os.environ, **SINGLE_THREADED}, self._log(name)
            )
        except UserError as error:
            return Member(name, self._host, "failed", str(error))
        if core is not None:
            os.sched_setaffinity(process_id, {core})
        return Member(name, self._host, "running")

    def _ended(self, name: str) -> Member:
        status = self._processes.forget(name)
        told = f"with status {status}" if status is not None else "by itself"
        end = " | ".join(last_lines(self._log(name), _TOLD_LINES).split("\n"))
        return Member(name, self._host, "failed", f"ended {told}{': ' * bool(end)}{end}")

    def _core(self) -> int:
        """Return the usable core that the fewest processes are pinned to."""
        pinned: Counter[int] = Counter()
        for process_id in self._processes.living().values():
            try:
                cores = os.sched_getaffinity(process_id)
            except OSError:  # it has just ended
                continue
            if len(cores) == 1:
                pinned.update(cores)
        return min(sorted(os.sched_getaffinity(0)), key=lambda core: pinned[core])

    def _log(self, name: str) -> Path:
        return self._folder / "logs" / f"{name}.log"
