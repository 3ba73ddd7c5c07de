"""Engines: whoever runs processes on machines. The fleet only asks them for workers.

An engine is asked four things: who is there, start so many, stop these, what does that one's log say. It
keeps nothing of its own: `members` asks the machines, so another process that asks sees the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class WorkerLaunch:
    """What every worker of a pool is told, whatever its engine."""

    run: str
    """Name of the run; with `pool` it tells this fleet's processes from others on the same machine."""
    pool: str
    learner: str
    """HOST:PORT as this pool's machines reach it; several, with commas between, where it may move."""
    slots: int
    key: Path | None = None
    """The worker's key file on this machine; None where nothing is encrypted."""
    allow_env: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """One worker of a pool as its engine sees it."""

    name: str
    """Unique in the fleet and among all that ever were, such as lab-17: the worker's --label."""
    host: str
    """Empty while its engine has not placed it."""
    state: Literal["pending", "running", "failed"]
    """`failed`: it was not started, or has ended by itself."""
    detail: str = ""
    """Why it is pending or failed, in one line, with the end of its log where there is one."""


class Engine(Protocol):
    """One pool's workers on one kind of machinery.

    Methods may take seconds; UserError where all of it fails.
    """

    def members(self) -> Sequence[Member]:
        """Return every worker of this pool that is pending or running.

        Beside them those that ended by themselves since the last call in this process.
        """

    def start(self, names: Sequence[str], avoid: Collection[str] = ()) -> Sequence[Member]:
        """Start a worker under each name, on no host of `avoid`; partial success is kept and told."""

    def stop(self, names: Collection[str], *, kill: bool = False) -> None:
        """Ask workers to end as SIGTERM does, or end them at once; return without waiting for them."""

    def log(self, name: str, lines: int) -> str:
        """Return the last lines of a worker's log, whether it lives or not."""

    def close(self) -> None:
        """Let go of what this process holds, such as tunnels; the workers go on."""


def worker_arguments(launch: WorkerLaunch, name: str) -> list[str]:
    """Return the arguments of `fleet worker` for the worker of this name."""
    given = [
        "--learner",
        launch.learner,
        "--slots",
        str(launch.slots),
        "--pool",
        launch.pool,
        "--label",
        name,
    ]
    if launch.key:
        given += ["--key", str(launch.key)]
    return given + [text for module in launch.allow_env for text in ("--allow-env", module)]
