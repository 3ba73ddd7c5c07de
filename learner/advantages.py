"""Generalised advantage estimation (Schulman et al., arXiv 1506.02438, equation 16) for whole episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def generalised_advantages(
    rewards: Floats,
    values: Floats,
    final_values: Floats,
    terminated: NDArray[np.bool_],
    lengths: NDArray[np.int64],
    gamma: float,
    gae_lambda: float,
) -> NDArray[np.float64]:
    """Return the advantage of each step, [N], of E episodes laid end to end.

    `rewards` and `values` are [N]; `lengths` [E], at least 1 each, sum to N. `final_values` [E] are of the
    observations after the last steps: a truncated episode is bootstrapped from it, that of a `terminated` one
    is never looked at. One vectorised operation per time step, over the episodes that last so long.
    """
    ends = np.cumsum(lengths) - 1
    next_values = np.empty(len(values))
    next_values[:-1] = values[1:]
    next_values[ends] = np.where(terminated, 0.0, final_values)
    advantages = rewards + gamma * next_values - values

    longest_first = np.argsort(-lengths, kind="stable")
    ends = ends[longest_first]
    lasting = np.searchsorted(-lengths[longest_first], -np.arange(1, lengths.max()), side="left")
    for back, count in enumerate(lasting, start=1):  # `count` episodes have more than `back` steps
        steps = ends[:count] - back
        advantages[steps] += gamma * gae_lambda * advantages[steps + 1]
    return advantages
