"""What a host is ordered to do in a round of synchronous mode, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.specs import Spaces
from protocol.step_messages import Stepped


@dataclass(frozen=True, slots=True)
class Order:
    """A frame on its way: what a host was sent and has not answered."""

    host: str
    slots: NDArray[np.int64]
    """[n], those stepped first, then those reset."""
    resets: int
    frame: bytes
    sent_at: float


@dataclass(slots=True)
class Results:
    """What came of the last order of each slot; rows of other slots are old."""

    observations: NDArray[Any]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    digests: NDArray[np.uint32]
    reset: NDArray[np.bool_]
    """Whether the slot was reset in this round, and taken through the actions so far."""
    failures: dict[int, str] = field(default_factory=dict)
    """By slot, of this round."""

    @classmethod
    def empty(cls, slots: int, spaces: Spaces) -> Results:
        """Return the results of no round yet."""
        return cls(
            np.zeros((slots, spaces.observation_size), spaces.observation_dtype),
            np.zeros(slots, np.float32),
            np.zeros(slots, np.bool_),
            np.zeros(slots, np.bool_),
            np.zeros(slots, np.uint32),
            np.zeros(slots, np.bool_),
        )


def stepped_fault(answer: Stepped, rows: int, spaces: Spaces) -> str:
    """Say what is wrong with an answer that should have so many rows; empty if nothing is."""
    shape, dtype = (rows, spaces.observation_size), np.dtype(spaces.observation_dtype)
    observations = answer.observations  # all else has fixed dtypes and as many rows, or it would not decode
    if observations.shape != shape or observations.dtype != dtype:
        return (
            f"its observations are {observations.dtype}{list(observations.shape)} in answer {answer.number},"
            f" the run's {dtype}{list(shape)}"
        )
    return ""
