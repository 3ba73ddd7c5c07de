"""What can be wrong with an episode that is a valid message."""

from __future__ import annotations

import numpy as np

from protocol.messages import LARGEST, Episode
from protocol.specs import Spaces

LOWEST_LOG_PROB = -1000.0
"""Far below the logarithm of any probability above 0 in float32: that of any action that can be drawn."""


def episode_fault(episode: Episode, spaces: Spaces) -> str:
    """Say what is wrong with an episode of an environment with these spaces; empty if nothing is."""
    if episode.length > spaces.max_episode_steps:
        return f"it has {episode.length} steps, the environment at most {spaces.max_episode_steps}"
    if episode.observations.shape[1:] != (spaces.observation_size,):
        return (
            f"its observations have shape {episode.observations.shape[1:]}, not ({spaces.observation_size},)"
        )
    if episode.observations.dtype != np.dtype(spaces.observation_dtype):
        return f"its observations are {episode.observations.dtype}, not {spaces.observation_dtype}"
    lowest, highest = int(episode.actions.min()), int(episode.actions.max())
    if lowest < 0 or highest >= spaces.actions:
        return f"its actions go from {lowest} to {highest}, the environment has {spaces.actions}"
    lowest_log_prob, highest_log_prob = float(episode.log_probs.min()), float(episode.log_probs.max())
    if lowest_log_prob < LOWEST_LOG_PROB or highest_log_prob > 1e-4:
        return f"its log-probabilities go from {lowest_log_prob:g} to {highest_log_prob:g}"
    if name := episode.out_of_range():
        return f"its {name} go beyond {LARGEST:g}"
    return ""
