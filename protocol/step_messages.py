"""Messages of the step socket, in synchronous mode: what each slot does, and what came of it.

They evolve as those in `messages` do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.tickets import Ticket


@dataclass(frozen=True, slots=True)
class SlotReset:
    """A slot to begin anew: reset from its ticket, then take `actions` [m] one after the other.

    With m > 0 the episode goes on here after its host was lost; the last of them is this round's action.
    """

    slot: int
    ticket: Ticket
    actions: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Step:
    """Learner to worker: advance these slots, each once, and answer when all have.

    Arrays: `slots` [k] int32 and `actions` [k] int64; the slots of `resets` come beside them.
    """

    incarnation: int
    number: int
    """Counts the steps sent in this incarnation, to whomever: one answer belongs to each."""
    slots: NDArray[np.int32]
    actions: NDArray[np.int64]
    resets: tuple[SlotReset, ...] = ()


@dataclass(frozen=True, slots=True)
class Stepped:
    """Worker to learner: what became of the slots of a `Step`, the stepped first, then the reset.

    Arrays over n = k + resets rows: `observations` [n, observation_size], `rewards` [n] float32, `terminated`
    and `truncated` [n] bool, and `digests` [n] uint32: of a reset with actions, the CRC-32 of the bytes of
    all observations before the last action, which tells an environment that does not reproduce; else 0.
    """

    session: str
    incarnation: int
    number: int
    observations: NDArray[Any]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    digests: NDArray[np.uint32]
    failures: tuple[SlotFailure, ...] = ()
    """Slots whose environment raised; their rows above mean nothing."""


@dataclass(frozen=True, slots=True)
class SlotFailure:
    """A slot whose environment raised, with the error in one line."""

    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class Present:
    """Worker to learner, first on its step socket, so that the ROUTER knows the way to this session."""

    session: str
    incarnation: int


OnStep = Step | Stepped | Present
