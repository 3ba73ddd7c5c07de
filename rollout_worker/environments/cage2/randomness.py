"""Counter-based random numbers: a draw depends on (key of the episode, step, which draw), and nothing else.

SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 17.
"""

from typing import Any

import numpy as np

from rollout_worker.environments.cage2.compilation import compiled

DRAW_GREEN_KIND, DRAW_GREEN_TARGET, DRAW_RED_TARGET = 0, 1, 2
DRAW_FAVOURITE, DRAW_OTHER, DRAW_DETECTED, DRAW_PICK = 3, 4, 5, 6

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_DRAWS_PER_STEP = 8


@compiled
def mix(value: Any) -> Any:
    """SplitMix64's finaliser on one uint64."""
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


@compiled
def random_bits(row: Any, draw: int) -> Any:
    """64 random bits for a draw of the row's current step."""
    return mix(row.key + np.uint64(row.step * _DRAWS_PER_STEP + draw + 1) * _GAMMA)


@compiled
def below(row: Any, draw: int, bound: int) -> int:
    """Draw a uniform integer in 0..bound-1 (bias below bound / 2^32)."""
    return np.int64(((random_bits(row, draw) >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))  # type: ignore[return-value]  # numba's integers


@compiled
def chance(row: Any, draw: int, probability: float) -> bool:
    """Draw True with the given probability."""
    return np.float64(random_bits(row, draw) >> np.uint64(11)) * 2.0**-53 < probability  # type: ignore[return-value]  # numba's booleans


@compiled
def count(mask: int) -> int:
    """Count the bits set (LLVM makes one instruction of the loop)."""
    number = 0
    while mask != 0:
        mask &= mask - 1
        number += 1
    return number


@compiled
def member(mask: int, index: int) -> int:
    """Find the bit number of the index-th bit set, counted from 0."""
    for _ in range(index):
        mask &= mask - 1
    return count((mask & -mask) - 1)
