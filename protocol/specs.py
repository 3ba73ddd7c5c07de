"""Descriptions that let a worker build what the learner wants: the environment and the policy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from protocol.tickets import SequenceName

Scenario = Mapping[str, Any]
"""Options of one episode, such as {"red_agent": "b_line", "episode_length": 100}; plain msgpack values."""


def without_greedy(scenario: Scenario) -> tuple[Scenario, bool]:
    """Split a scenario into the environment's part and whether the most probable action is played."""
    return {key: value for key, value in scenario.items() if key != "greedy"}, bool(scenario.get("greedy"))


@dataclass(frozen=True, slots=True)
class Spaces:
    """What an environment shows and accepts, after flattening.

    `observation_size` counts the entries of one observation; where `masked`, its last `actions` entries say
    which actions are legal (1) and are not an input of the network.
    """

    observation_size: int
    observation_dtype: str
    actions: int
    masked: bool
    max_episode_steps: int

    @property
    def inputs(self) -> int:
        """Return how many entries of an observation are inputs of the network."""
        return self.observation_size - self.masked * self.actions


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """A registered environment's name and options, and the scenarios that tickets walk through in turn."""

    name: str
    options: Mapping[str, Any]
    spaces: Spaces
    train_scenarios: tuple[Scenario, ...] = ({},)
    evaluate_scenarios: tuple[Scenario, ...] = ({},)
    step_delay: str = ""
    """Delay of each step, see `rollout_worker.environments.delays`; empty for none."""

    def scenario(self, sequence: SequenceName, number: int) -> Scenario:
        """Return the scenario of a ticket: its sequence's list, taken by number, round and round."""
        scenarios = self.train_scenarios if sequence == "train" else self.evaluate_scenarios
        return scenarios[number % len(scenarios)]


INPUT_LIMIT = 10.0
"""A policy's normalised inputs are clipped to this, on both sides."""
ILLEGAL_LOGIT = -1e30
"""Of an action that the mask forbids."""


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A multilayer perceptron with a categorical head.

    Its arrays, float32, by name: `hidden/I/weight` [inputs, outputs], `hidden/I/bias` [outputs] for each
    hidden layer I, `logits/weight`, `logits/bias`, and where `normalised` also `normalisation/mean` and
    `normalisation/inverse_std` [inputs].
    """

    inputs: int
    actions: int
    masked: bool = False
    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["relu", "tanh"] = "relu"
    normalised: bool = False
    kind: Literal["mlp"] = field(default="mlp")

    def fingerprint(self) -> str:
        """Return all of it in one line, which two equal specs share."""
        return json.dumps(asdict(self))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every array of this policy, in a fixed order."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.normalised:
            shapes["normalisation/mean"] = shapes["normalisation/inverse_std"] = (self.inputs,)
        width = self.inputs
        for index, size in enumerate(self.hidden):
            shapes[f"hidden/{index}/weight"], shapes[f"hidden/{index}/bias"] = (width, size), (size,)
            width = size
        shapes["logits/weight"], shapes["logits/bias"] = (width, self.actions), (self.actions,)
        return shapes
