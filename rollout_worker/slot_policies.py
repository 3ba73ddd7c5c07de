"""Which policy acts in which slot."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rollout_worker.policy import Policy


class SlotPolicies:
    """Acts in slots whose policies differ, with one call for each policy."""

    def __init__(self, slots: int) -> None:
        self.greedy = np.zeros(slots, np.bool_)
        """Slots in which the most probable action is played."""
        self._policies: list[Policy] = []
        self._place_of = np.zeros(slots, np.int64)
        """Places in `_policies`."""

    def assign(self, policies: Mapping[int, Policy]) -> None:
        """Let these policies act, each in its slot, and no others."""
        self._policies = list({id(policy): policy for policy in policies.values()}.values())
        places = {id(policy): place for place, policy in enumerate(self._policies)}
        for slot, policy in policies.items():
            self._place_of[slot] = places[id(policy)]

    def act(
        self, slots: NDArray[np.int64], observations: NDArray[np.generic], uniforms: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the actions in `slots` [k] and their log-probabilities, as `Policy.act` does."""
        greedy = self.greedy[slots] if self.greedy[slots].any() else None
        if len(self._policies) == 1:
            return self._policies[0].act(observations, uniforms, greedy)
        actions, log_probs = np.empty(len(slots), np.int64), np.empty(len(slots), np.float32)
        places = self._place_of[slots]
        for place, policy in enumerate(self._policies):
            if len(rows := np.flatnonzero(places == place)):
                actions[rows], log_probs[rows] = policy.act(
                    observations[rows], uniforms[rows], None if greedy is None else greedy[rows]
                )
        return actions, log_probs
