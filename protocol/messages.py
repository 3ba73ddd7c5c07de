"""Messages, as one frozen dataclass each, and one union per direction; `step_messages` has more of them.

Evolution: new fields have defaults and go last; types never change; a removed field raises the major version.
`Ranges` are half-open intervals of ticket numbers, sorted and disjoint: ((0, 5), (7, 9)) is 0-4, 7, 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from protocol.specs import EnvironmentSpec, PolicySpec, Spaces
from protocol.step_messages import OnStep
from protocol.tickets import SequenceName, Ticket

Ranges = tuple[tuple[int, int], ...]
TicketRanges = Mapping[SequenceName, Ranges]
"""Ticket numbers by sequence; a sequence may be absent."""

Arrays = Mapping[str, NDArray[Any]]

MOST_NAME_CHARACTERS = 100
"""Of a session, a host, a pool and a label."""
LARGEST = 1e9
"""Observations and rewards lie within plus and minus this: then all that training makes of them is finite."""


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A policy version: the learner's incarnation that published it, and the number of updates behind it."""

    incarnation: int
    number: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A ticket that its environment refused to play, with the error in one line."""

    ticket: Ticket
    reason: str
    final: bool = False
    """Playing it again is no remedy: it was, and came out differently."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """All tickets that a worker holds. A ticket is in one place: queued, running, outbox or failures."""

    queued: TicketRanges = field(default_factory=dict)
    running: TicketRanges = field(default_factory=dict)
    outbox: TicketRanges = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    stalled: TicketRanges = field(default_factory=dict)
    """Those of `running` that made no step since the heartbeat before."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a worker's environment turned out to be, and what its arithmetic gives."""

    spaces: Spaces
    probe: str
    """Hash of a whole short episode: environment, inference, sampling, numpy's version."""
    processor: str


@dataclass(frozen=True, slots=True)
class Hello:
    """Worker to learner: who I am and all that I hold. `session` is random, one per process life."""

    session: str
    host: str
    pid: int
    slots: int
    software: str
    run: str = ""
    """The run this worker already belongs to; empty on its first hello."""
    holdings: Holdings = field(default_factory=Holdings)
    pool: str = ""
    """To which its engine counts it."""
    label: str = ""
    """Its name in its engine: an operator may call it so."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Worker to learner, every `heartbeat_seconds` and at once after a change: all that I hold and do."""

    session: str
    number: int
    """Counts this session's heartbeats."""
    incarnation: int
    """Of the last answer seen; with `answer`, what the learner's grants are compared against."""
    answer: int
    """Number of the last answer seen; 0 if none."""
    state: Literal["building", "ready", "paused", "draining"]
    holdings: Holdings
    version: Version | None = None
    """The newest weights held."""
    built: Built | None = None
    episodes: int = 0
    """Episodes finished in this session."""
    steps: int = 0
    """Environment steps in this session."""
    pushes: int = 0
    """Episodes pushed, repeats included."""
    rejected: int = 0
    """Messages from the learner that did not decode."""
    cpu_seconds: float = 0.0
    resident_bytes: int = 0
    error: str = ""
    """The last error in one line."""


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """Worker to learner: send me these weights. `version` None asks for the newest."""

    session: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Either way: I leave. From a worker: these tickets are returned. From the learner: the run is over."""

    session: str
    reason: str
    holdings: Holdings = field(default_factory=Holdings)


@dataclass(frozen=True, slots=True)
class Query:
    """Anyone to the learner: what is the ledger, the status?"""

    what: Literal["ledger", "status"]
    first: int = 0
    """A report of the status tells of so many workers, from this number on; its `next` begins another."""


@dataclass(frozen=True, slots=True)
class Command:
    """An operator to the learner: workers shall play, pause or drain; a `Report` says which."""

    what: Literal["play", "pause", "drain"]
    targets: tuple[str, ...] = ()
    """Each a worker's label or host:pid, a host, or a pool; none means all, and whoever joins later."""


@dataclass(frozen=True, slots=True)
class LogRequest:
    """An operator to the learner, and on to each worker: the last lines of these workers' logs."""

    lines: int
    targets: tuple[str, ...] = ()
    """Of an operator: as in `Command`."""
    number: int = 0
    """Of the learner: which request this is."""
    most_bytes: int = 2**16
    """Of the learner: how long an answer may be."""


@dataclass(frozen=True, slots=True)
class LogLines:
    """Worker to learner: the answer to a `LogRequest`, the oldest line first."""

    session: str
    number: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Learner to whoever sent a `Query`, a `Command` or a `LogRequest`. Plain msgpack values."""

    what: str
    content: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Welcome:
    """Learner to worker, after its hello: everything it needs to play."""

    run: str
    run_seed: int
    incarnation: int
    mode: Literal["async", "sync"]
    environment: EnvironmentSpec
    policy: PolicySpec
    heartbeat_seconds: float
    liveness_seconds: float
    stuck_after_seconds: float = 60.0
    """A worker whose environment makes no step for this long, and a few heartbeats, ends."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Learner to worker: not you; the reason names both sides' values. The worker stops."""

    reason: str


@dataclass(frozen=True, slots=True)
class HelloAgain:
    """Learner to a worker that it does not know (any more): repeat your hello with all that you hold."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Tickets [start, stop) of a sequence to play under the newest version >= `version`, or exactly it."""

    sequence: SequenceName
    start: int
    stop: int
    version: int
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """Learner to worker, after each heartbeat and unasked when something changed."""

    incarnation: int
    number: int
    """Counts the answers to this session within the incarnation."""
    version: int
    """The newest version published."""
    drop: TicketRanges = field(default_factory=dict)
    """Tickets to forget wherever they are: received, revoked, or unknown to this incarnation."""
    grants: tuple[Grant, ...] = ()
    desired: Literal["play", "pause", "drain"] = "play"


@dataclass(frozen=True, slots=True)
class Weights:
    """Learner to workers, on the weights socket at each update and over control as a snapshot."""

    run: str
    version: Version
    fingerprint: str
    """Of the PolicySpec."""
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class Episode:
    """Worker to learner: one completed episode of T steps.

    Arrays: `observations` [T+1, observation_size] in the environment's dtype (the last is the one after the
    final step), `actions` [T] integers, `rewards` [T] float32, `log_probs` [T] float32 of the behaviour
    policy. `terminated` is False where the episode was truncated, and the return is then bootstrapped.
    """

    run: str
    session: str
    ticket: Ticket
    version: Version
    terminated: bool
    seconds: float
    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    log_probs: NDArray[np.float32]

    @property
    def length(self) -> int:
        """Return the number of steps, T."""
        return len(self.rewards)

    @property
    def undiscounted_return(self) -> float:
        """Return the sum of the rewards."""
        return float(self.rewards.sum(dtype=np.float64))

    def out_of_range(self) -> str:
        """Return which array holds a number beyond `LARGEST`, infinity or NaN; empty if none does."""
        for name in ("observations", "rewards"):
            array = getattr(self, name)
            if array.size and not (array.min() >= -LARGEST and array.max() <= LARGEST):
                return name
        return ""


ToLearner = Hello | Heartbeat | SnapshotRequest | Goodbye | LogLines | Query | Command | LogRequest
"""On the control socket, from a worker or a command."""

ToWorker = Welcome | Refuse | HelloAgain | Answer | Weights | Goodbye | LogRequest | Report
"""On the control socket, from the learner; Weights also on the weights socket."""

Message = ToLearner | ToWorker | Episode | OnStep
