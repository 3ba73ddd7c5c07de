"""What has happened so far in the episode of each slot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.messages import Arrays
from protocol.tickets import action_uniforms
from rollout_worker.environments.slots import SlotEnvironments

_FIRST_CAPACITY_STEPS = 128


class OpenEpisodes:
    """The episodes of all slots, step by step; they have room for as many steps as the longest needed."""

    def __init__(self, environments: SlotEnvironments) -> None:
        slots, self._most_steps = environments.slots, environments.max_episode_steps
        capacity = min(self._most_steps, _FIRST_CAPACITY_STEPS)
        size, dtype = environments.observation_size, environments.observation_dtype
        self.steps = np.zeros(slots, np.int64)
        """Made so far, by slot."""
        self.observations = np.zeros((slots, capacity + 1, size), dtype)
        """The first, and the one after each step."""
        self.actions = np.zeros((slots, capacity), np.min_scalar_type(environments.actions - 1))
        self.rewards = np.zeros((slots, capacity), np.float32)
        self.log_probs = np.zeros((slots, capacity), np.float32)
        self._keys = np.zeros(slots, np.uint64)
        self._uniforms = np.zeros((slots, capacity))

    def begin(
        self, slots: NDArray[np.int64], keys: NDArray[np.uint64], observations: NDArray[np.generic]
    ) -> None:
        """Begin an episode in each of `slots` [k], with the key of its actions and its first observation."""
        self.steps[slots], self._keys[slots], self.observations[slots, 0] = 0, keys, observations
        # Whole episodes at once: a draw for a few slots costs as much as one for all their steps.
        self._uniforms[slots] = self._drawn(keys)

    def inputs(
        self, slots: NDArray[np.int64], steps: NDArray[np.int64]
    ) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
        """Return what the next actions of `slots` [k], which made `steps` [k], follow from.

        That is their last observations [k, observation_size] and a uniform for each [k].
        """
        if int(steps.max()) == self.rewards.shape[1]:
            self._grow()
        return self.observations[slots, steps], self._uniforms[slots, steps]

    def add(
        self,
        slots: NDArray[np.int64],
        steps: NDArray[np.int64],
        actions: NDArray[np.int64],
        log_probs: NDArray[np.float32],
        observations: NDArray[np.generic],
        rewards: NDArray[np.float32],
    ) -> NDArray[np.int64]:
        """Add a step to `slots` [k], which made `steps` [k]; return how many they have made now [k]."""
        after = steps + 1
        self.observations[slots, after] = observations
        self.actions[slots, steps] = actions
        self.rewards[slots, steps] = rewards
        self.log_probs[slots, steps] = log_probs
        self.steps[slots] = after
        return after

    def arrays(self, slot: int) -> Arrays:
        """Return copies of a slot's arrays, by their name in an `Episode`."""
        length = int(self.steps[slot])
        return {
            "observations": self.observations[slot, : length + 1].copy(),
            "actions": self.actions[slot, :length].copy(),
            "rewards": self.rewards[slot, :length].copy(),
            "log_probs": self.log_probs[slot, :length].copy(),
        }

    def _grow(self) -> None:
        """Double the steps that an episode may have."""
        more = min(self.rewards.shape[1], self._most_steps - self.rewards.shape[1])
        for name in ("observations", "actions", "rewards", "log_probs"):
            array = getattr(self, name)
            room = np.zeros((array.shape[0], more, *array.shape[2:]), array.dtype)
            setattr(self, name, np.concatenate((array, room), axis=1))
        self._uniforms = self._drawn(self._keys)

    def _drawn(self, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return the action uniforms of episodes [k, capacity]."""
        return action_uniforms(keys[:, np.newaxis], np.arange(self.rewards.shape[1]))
