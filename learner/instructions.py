"""What the registry tells the thread that owns the sockets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from learner.conduct import Offence
from protocol.messages import ToWorker

MOST_CHARACTERS = 2000

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a worker over control, without blocking."""

    session: str
    message: ToWorker


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """Send a worker the weights of this version over control."""

    session: str
    version: int


@dataclass(frozen=True, slots=True)
class StopRun:
    """End the run: it cannot go on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Misconduct:
    """Count something against the key of a worker."""

    key: str
    offence: Offence
    times: float = 1.0


@dataclass(frozen=True, slots=True)
class Log:
    """Tell the user."""

    level: Level
    text: str


Instruction = Send | SendSnapshot | StopRun | Misconduct | Log


class Instructions:
    """What is to be done at the end of a turn, in order."""

    def __init__(self) -> None:
        self._pending: list[Instruction] = []

    def send(self, session: str, message: ToWorker) -> None:
        """Send a worker a message."""
        self._pending.append(Send(session, message))

    def log(self, level: Level, text: str) -> None:
        """Tell the user, who may read what others wrote."""
        self._pending.append(Log(level, one_line(text)))

    def charge(self, key: str, offence: Offence, times: float = 1.0) -> None:
        """Count something against the key of a worker, where there are keys."""
        if key:
            self._pending.append(Misconduct(key, offence, times))

    def extend(self, instructions: Iterable[Instruction]) -> None:
        """Add what others made."""
        self._pending += instructions

    def take(self) -> list[Instruction]:
        """Return all there are, and begin anew."""
        taken, self._pending = self._pending, []
        return taken


def one_line(text: str) -> str:
    """Return what others wrote such that, in a log, it is one line of bounded length."""
    text = text[:MOST_CHARACTERS]
    return "".join(character if character.isprintable() else " " for character in text)


def printable(text: str, characters: int) -> str:
    """Return a name that others gave without what no terminal should be sent, of bounded length."""
    return "".join(character for character in text if character.isprintable())[:characters].strip()
