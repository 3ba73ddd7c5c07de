"""What a worker's membership takes in and gives out: its states, events, instructions and exit codes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Literal

from protocol.messages import (
    Answer,
    Built,
    Failure,
    Goodbye,
    HelloAgain,
    Refuse,
    ToLearner,
    Version,
    Weights,
    Welcome,
)
from protocol.tickets import Ticket


class State(Enum):
    """Where a worker's life stands."""

    JOINING = "says hello until a learner welcomes it"
    BUILDING = "welcomed; builds its environment"
    PLAYING = "plays the tickets that it is granted, or hosts what the learner plays"
    PAUSED = "finishes its running tickets, has returned the queued ones"
    DRAINING = "finishes its running tickets, then leaves"
    LEAVING = "has returned its tickets and waits for its outbox to be acknowledged"
    ENDED = "gone; handles nothing any more"


class ExitCode(IntEnum):
    """What the process says at its end; SIGTERM and SIGINT are a clean end, 0."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    GAVE_UP = 3
    REFUSED = 4


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What the process knows of itself, for the next heartbeat."""

    passes: int = 0
    """Times the playing loop went round: running tickets that saw none are stalled."""
    steps: int = 0
    inside: bool = False
    """Whether the playing thread is in an environment's step."""
    rejected: int = 0
    cpu_seconds: float = 0.0
    resident_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; the only event that sends heartbeats, hellos and snapshot requests."""

    telemetry: Telemetry = field(default_factory=Telemetry)


@dataclass(frozen=True, slots=True)
class BuildDone:
    """The environment is built and was reset once."""

    built: Built


@dataclass(frozen=True, slots=True)
class BuildFailed:
    """The environment cannot be built or rebuilt; the worker is of no use."""

    reason: str


@dataclass(frozen=True, slots=True)
class EpisodeFinished:
    """A running ticket became an episode, which the caller keeps until told to forget it."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class TicketFailed:
    """The environment raised on a running ticket, or does not play it the same way twice."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Terminate:
    """Leave within FLUSH_SECONDS: a signal, or an error that this process cannot survive."""

    reason: str
    code: ExitCode = ExitCode.DONE


@dataclass(frozen=True, slots=True)
class Drain:
    """Finish the running tickets and leave once all is received, or leave as at Terminate after a limit."""

    reason: str
    limit_seconds: float = math.inf


FromLearner = Welcome | Refuse | HelloAgain | Answer | Weights | Goodbye
Event = Tick | BuildDone | BuildFailed | EpisodeFinished | TicketFailed | Terminate | Drain | FromLearner
"""Messages from the learner are events as they are; weights after the caller has checked and kept them."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send over control, without blocking; a message that cannot go now is dropped."""

    message: ToLearner


@dataclass(frozen=True, slots=True)
class Dial:
    """Speak to the learner at this address, one of those given, and no longer to the one before."""

    address: str


@dataclass(frozen=True, slots=True)
class Build:
    """Build what the welcome describes; answer with BuildDone or BuildFailed."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class Introduce:
    """In sync mode, say over the step socket that this session is here: the learner does not know it."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Start:
    """Play the ticket in an idle slot under exactly this version, which is held.

    `twice`: and again in another slot, before its episode counts.
    """

    ticket: Ticket
    version: Version
    twice: bool = False


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop playing these tickets; nothing of them is wanted."""

    tickets: tuple[Ticket, ...]


@dataclass(frozen=True, slots=True)
class Push:
    """Send these tickets' episodes, for the first time or again."""

    tickets: tuple[Ticket, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Throw these tickets' episodes away: the learner has them or does not want them."""

    tickets: tuple[Ticket, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Throw the weights of these versions away."""

    versions: tuple[Version, ...]


@dataclass(frozen=True, slots=True)
class Log:
    """Tell the user."""

    level: Literal["info", "warning", "error"]
    text: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The end of the process."""

    code: ExitCode
    reason: str


Instruction = Send | Dial | Build | Introduce | Start | Abandon | Push | Forget | Release | Log | Stop
