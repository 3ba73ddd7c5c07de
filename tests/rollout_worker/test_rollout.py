"""What is played in this process: episodes of registered environments, and their steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from protocol.errors import FleetError
from protocol.specs import EnvironmentSpec, PolicySpec
from rollout_worker.environments import registry
from rollout_worker.player import Step
from rollout_worker.rollout import play
from tests.rollout_worker.test_player import train


def test_play_yields_episodes_of_a_registered_environment_and_shows_their_steps() -> None:
    spaces = registry.describe("CartPole-v1", {})
    spec, policy = EnvironmentSpec("CartPole-v1", {}, spaces), PolicySpec(4, 2)
    arrays = {name: np.full(shape, 0.01, np.float32) for name, shape in policy.shapes().items()}
    seen: list[Step] = []
    episodes = list(play(spec, policy, arrays, 1, train(0, 1, 2), slots=2, version=5, on_step=seen.append))
    assert {episode.ticket for episode in episodes} == set(train(0, 1, 2))
    for episode in episodes:
        steps = [step for step in seen if step.ticket == episode.ticket]
        assert [step.number for step in steps] == list(range(episode.length))
        assert [step.action for step in steps] == episode.actions.tolist()
        assert [step.reward for step in steps] == episode.rewards.tolist()
        assert steps[-1].terminated and episode.version.number == 5
    with pytest.raises(FleetError, match=r"ticket train:0 failed: ValueError: .*not a number"):
        list(
            play(
                replace(spec, train_scenarios=({"low": "not a number"},)),
                policy,
                arrays,
                1,
                train(0),
                slots=1,
            )
        )


def test_cage2_plays_from_the_registry() -> None:
    spaces = registry.describe("cage2", {}, 30)
    scenarios = ({"red_agent": "b_line"}, {"red_agent": "meander", "episode_length": 20})
    spec = EnvironmentSpec("cage2", {}, spaces, train_scenarios=scenarios)
    policy = PolicySpec(spaces.inputs, spaces.actions, masked=True)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in policy.shapes().items()}
    episodes = {
        episode.ticket.number: episode for episode in play(spec, policy, arrays, 1, train(0, 1, 2), slots=3)
    }
    assert [episodes[number].length for number in range(3)] == [30, 20, 30]
    masks = episodes[0].observations[:-1, policy.inputs :]
    np.testing.assert_allclose(episodes[0].log_probs, -np.log(masks.sum(axis=1)), rtol=1e-5)
