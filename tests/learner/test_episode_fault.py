"""What no valid episode holds, and training could not bear."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from learner.episode_fault import LOWEST_LOG_PROB, episode_fault
from protocol.messages import LARGEST, Episode
from protocol.specs import PolicySpec, Spaces
from tests.learner.conftest import EpisodeMaker

SPACES = Spaces(4, "float32", 2, False, 100)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rewards": np.full(5, 3e38, np.float32)}, "rewards go beyond 1e+09"),
        ({"rewards": np.full(5, -2e9, np.float32)}, "rewards go beyond 1e+09"),
        ({"observations": np.full((6, 4), 1e30, np.float32)}, "observations go beyond 1e+09"),
        ({"log_probs": np.full(5, -1e30, np.float32)}, "log-probabilities go from -1e+30"),
        ({"log_probs": np.full(5, 0.1, np.float32)}, "log-probabilities go from 0.1 to 0.1"),
        ({"rewards": np.full(5, LARGEST, np.float32)}, ""),
        ({"log_probs": np.full(5, LOWEST_LOG_PROB, np.float32)}, ""),
    ],
)
def test_an_episode_of_numbers_that_training_cannot_bear_is_at_fault(
    make_episodes: EpisodeMaker, change: dict[str, Any], reason: str
) -> None:
    (episode,) = make_episodes(PolicySpec(4, 2), [5])
    episode = replace(episode, **({"log_probs": np.full(5, -0.7, np.float32)} | change))
    assert isinstance(episode, Episode)
    fault = episode_fault(episode, SPACES)
    assert reason in fault if reason else fault == ""
