"""From episodes to the arrays of one update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.messages import Episode


@dataclass(frozen=True, slots=True)
class Batch:
    """E episodes, sorted by ticket, laid end to end: N steps in all, and nothing padded.

    `observations` are uint8 or float32; a masked environment's last `actions` entries say what is legal.
    """

    observations: NDArray[Any]
    """[N, observation_size]: what each action was chosen from."""
    final_observations: NDArray[Any]
    """[E, observation_size]: what stood after the last action of each episode."""
    actions: NDArray[np.int64]
    """[N]"""
    rewards: NDArray[np.float32]
    """[N], unscaled."""
    log_probs: NDArray[np.float32]
    """[N], of the behaviour policy."""
    lengths: NDArray[np.int64]
    """[E], steps."""
    terminated: NDArray[np.bool_]
    """[E]; False where the episode was truncated."""
    versions: NDArray[np.int64]
    """[E]: the update number of the weights that played the episode."""

    @property
    def returns(self) -> NDArray[np.float64]:
        """Return the undiscounted, unscaled return of each episode, [E]."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.add.reduceat(self.rewards.astype(np.float64), starts)


def make_batch(episodes: Sequence[Episode]) -> Batch:
    """Lay episodes, given in any order, end to end in the order of their tickets.

    Raises ValueError if there is none, or if one has no step.
    """
    episodes = sorted(episodes, key=lambda episode: episode.ticket)
    if not episodes or not all(episode.length for episode in episodes):
        raise ValueError("a batch is made of at least one episode, each of at least one step")
    return Batch(
        observations=_trainable(np.concatenate([episode.observations[:-1] for episode in episodes])),
        final_observations=_trainable(np.stack([episode.observations[-1] for episode in episodes])),
        actions=np.concatenate([episode.actions for episode in episodes]).astype(np.int64),
        rewards=np.concatenate([episode.rewards for episode in episodes], dtype=np.float32),
        log_probs=np.concatenate([episode.log_probs for episode in episodes], dtype=np.float32),
        lengths=np.array([episode.length for episode in episodes], dtype=np.int64),
        terminated=np.array([episode.terminated for episode in episodes], dtype=np.bool_),
        versions=np.array([episode.version.number for episode in episodes], dtype=np.int64),
    )


def _trainable(observations: NDArray[Any]) -> NDArray[Any]:
    return observations if observations.dtype == np.uint8 else observations.astype(np.float32, copy=False)
