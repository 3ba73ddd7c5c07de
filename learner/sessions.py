"""The life of one worker process as the learner sees it: its states, and the one door between them.

BUILDING -> READY <-> PAUSED, DRAINING          by its heartbeats
any of these -> LOST -> BUILDING                by silence, and by a new hello
any of these -> LEFT or REFUSED                 for good
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal

from learner.hands import Hand
from learner.ledger import Deliveries, Share
from learner.pace import Pace
from protocol.errors import FleetError
from protocol.messages import Heartbeat, Hello
from protocol.tickets import SEQUENCES, SequenceName

Desired = Literal["play", "pause", "drain"]


class SessionState(Enum):
    """Where a worker's life stands."""

    BUILDING = "welcomed; it builds its environment, or its first heartbeat is still to come"
    READY = "plays the tickets that it is granted"
    PAUSED = "finishes its running tickets and takes no others"
    DRAINING = "finishes its running tickets, then leaves"
    LOST = "was silent for too long; its tickets are issued again, a new hello brings it back"
    LEFT = "said goodbye"
    REFUSED = "does not fit this run; it was told why"


_LIVE = frozenset({SessionState.BUILDING, SessionState.READY, SessionState.PAUSED, SessionState.DRAINING})
_ENDS = frozenset({SessionState.LOST, SessionState.LEFT, SessionState.REFUSED})
_PLAYING = _LIVE - {SessionState.BUILDING}
MOVES: Mapping[SessionState, frozenset[SessionState]] = {
    SessionState.BUILDING: _PLAYING | _ENDS,
    SessionState.READY: _PLAYING - {SessionState.READY} | _ENDS,
    SessionState.PAUSED: _PLAYING - {SessionState.PAUSED} | _ENDS,
    SessionState.DRAINING: _PLAYING - {SessionState.DRAINING} | _ENDS,
    SessionState.LOST: frozenset({SessionState.BUILDING, SessionState.REFUSED}),
    SessionState.LEFT: frozenset(),
    SessionState.REFUSED: frozenset(),
}


class InvalidMove(FleetError):
    """A change of state that a worker's life does not have; carries the worker's history."""

    def __init__(self, session: Session, to: SessionState, why: str) -> None:
        past = "; ".join(f"{now:.1f} s {state.name.lower()} ({why})" for now, state, why in session.history)
        super().__init__(
            f"{session.name} cannot go from {session.state.name} to {to.name} ({why}); history: {past}"
        )
        self.history = tuple(session.history)


@dataclass(slots=True, eq=False)
class Session:
    """One worker process."""

    hello: Hello
    heard_at: float
    number: int = 0
    """Counts those of this incarnation, from 1."""
    state: SessionState = SessionState.BUILDING
    hands: dict[SequenceName, Hand] = field(default_factory=dict)
    heartbeat: Heartbeat | None = None
    answers: int = 0
    """Number of the last answer sent."""
    desired: Desired = "play"
    admitted: bool = False
    """Whether its environment and its arithmetic were found to fit."""
    reachable: bool = True
    due: bool = False
    """An answer is due now: to a heartbeat, or with a ticket taken back."""
    grants: list[tuple[SequenceName, int]] = field(default_factory=list)
    """Tickets given, for the answer of this turn."""
    dealt: int | None = None
    """Slots that it hosts in synchronous mode."""
    lost_before: bool = False
    stuck_at_steps: int = -1
    """Steps that it had made when a ticket of its was found stuck."""
    error: str = ""
    key: str = ""
    """Public key of its worker; empty where there are none."""
    deliveries: Deliveries = field(default_factory=Deliveries)
    pace: Pace = field(default_factory=Pace)
    """Of its episodes, steps and seconds of CPU."""
    history: deque[tuple[float, SessionState, str]] = field(default_factory=lambda: deque(maxlen=20))

    def __post_init__(self) -> None:
        """Deal it its empty hands."""
        self.hands = {sequence: Hand(self.hello.session, self.key) for sequence in SEQUENCES}
        self.history.append((self.heard_at, self.state, "hello"))

    @property
    def name(self) -> str:
        """Return how the user is told of it."""
        return f"worker {self.hello.host}:{self.hello.pid}"

    @property
    def share(self) -> Share:
        """Return what became of the tickets that it was given, and what it delivered."""
        hands = self.hands.values()
        return Share(
            name=self.called,
            given=sum(hand.given for hand in hands),
            received=sum(hand.received for hand in hands),
            taken_back=sum(hand.taken_back for hand in hands),
            held=sum(len(hand.held) for hand in hands),
            deliveries=replace(self.deliveries),
        )

    @property
    def called(self) -> str:
        """Return how an operator is told of it: by its label, too, where it has one."""
        name = f"{self.hello.host}:{self.hello.pid}"
        return f"{self.hello.label} ({name})" if self.hello.label else name

    @property
    def slots(self) -> int:
        """Return how many episodes it plays at once."""
        return self.hello.slots if self.dealt is None else self.dealt

    @property
    def load(self) -> int:
        """Return how many of its tickets need a slot, now or later."""
        train, evaluate = self.hands.values()
        return len(train.held) - len(train.outbox) + len(evaluate.held) - len(evaluate.outbox)

    @property
    def live(self) -> bool:
        """Say whether it takes part."""
        return self.state in _LIVE

    @property
    def hosts(self) -> bool:
        """Say whether it may play."""
        return self.state is SessionState.READY and self.admitted and self.desired == "play"

    @property
    def takes_tickets(self) -> bool:
        """Say whether it may be granted tickets."""
        return self.hosts and self.reachable

    @property
    def stuck(self) -> bool:
        """Say whether it has made no step since a ticket of its was found stuck."""
        return self.heartbeat is not None and self.heartbeat.steps <= self.stuck_at_steps

    @property
    def changed(self) -> bool:
        """Say whether some of its tickets are to be dropped and no answer has said so."""
        return any(hand.changed for hand in self.hands.values())

    def move(self, to: SessionState, why: str, now: float) -> None:
        """Change the state: the one door. Raises InvalidMove."""
        if to not in MOVES[self.state]:
            raise InvalidMove(self, to, why)
        self.state = to
        self.history.append((now, to, why))
