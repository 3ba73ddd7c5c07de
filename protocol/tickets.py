"""Tickets, and the counter-based random streams that follow from them.

An episode exists first as a ticket. Everything random in it (the environment's seed, the action noise) is a
pure function of (run seed, sequence, number, step), so an episode depends on its ticket and the weights and
on nothing else: not on the host, the slot or the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SequenceName = Literal["train", "evaluate"]
SEQUENCES: tuple[SequenceName, ...] = ("train", "evaluate")

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ENVIRONMENT_STREAM, _ACTION_STREAM = 1, 2
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """One episode: the `number`-th of its `sequence`, issued by the learner once."""

    sequence: SequenceName
    number: int

    def __str__(self) -> str:
        return f"{self.sequence}:{self.number}"


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble uint64 values, shape kept: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def environment_seed(run_seed: int, ticket: Ticket) -> int:
    """Return the 64-bit seed of the ticket's environment."""
    return _stream_key(run_seed, ticket, _ENVIRONMENT_STREAM)


def action_key(run_seed: int, ticket: Ticket) -> int:
    """Return the 64-bit key of the ticket's action noise; `action_uniforms` draws from it."""
    return _stream_key(run_seed, ticket, _ACTION_STREAM)


def action_uniforms(keys: NDArray[np.uint64], steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the uniform draw in [0, 1) of each (key, step); their shapes broadcast."""
    bits = mix64(keys + (steps.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _stream_key(run_seed: int, ticket: Ticket, stream: int) -> int:
    key = run_seed & _MASK64
    for part in (SEQUENCES.index(ticket.sequence), ticket.number, stream):
        key = _mix64(key + (part + 1) * int(_GOLDEN) & _MASK64)
    return key


def _mix64(value: int) -> int:
    """`mix64` of one integer: twenty times faster than numpy, and drawn twice an episode."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    return value ^ value >> 31
