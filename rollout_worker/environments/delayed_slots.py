"""Environments whose steps are delayed, whatever they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rollout_worker.environments.delays import StepDelay
from rollout_worker.environments.slots import SlotEnvironments, StepResult


class DelayedSlots:
    """Environments whose steps take the time of a `StepDelay`.

    Scheduled: `step` returns at once what is to be looked at from `ready_at` of its slot on. Blocking: it
    sleeps for the sum of its slots' delays, one environment after the other. A reset makes a slot ready:
    whoever abandons an episode does not wait for its last step.
    """

    def __init__(
        self,
        inner: SlotEnvironments,
        delay: StepDelay,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.inner, self.delay = inner, delay
        self.slots, self.observation_size = inner.slots, inner.observation_size
        self.observation_dtype, self.actions = inner.observation_dtype, inner.actions
        self.masked, self.max_episode_steps = inner.masked, inner.max_episode_steps
        self.numbers = list(range(inner.slots))
        """By which numbers slots are slow or not: their own, or those that a learner knows them by."""
        self._ready_at = np.zeros(inner.slots)
        self.ready_at = None if delay.blocking else self._ready_at
        """Times of `clock` [slots]; None while blocking."""
        self._draws: list[Iterator[float]] = [iter(())] * inner.slots
        self._clock, self._sleep = clock, sleep

    def reset(
        self, slots: NDArray[np.int64], seeds: NDArray[np.uint64], scenarios: Sequence[Mapping[str, Any]]
    ) -> NDArray[Any]:
        """Begin an episode, without delay, in each of `slots` [k]."""
        for slot, seed in zip(slots.tolist(), seeds.tolist(), strict=True):
            self._draws[slot] = self.delay.draws(seed, self.numbers[slot])
        self._ready_at[slots] = 0.0
        return self.inner.reset(slots, seeds, scenarios)

    def step(self, slots: NDArray[np.int64], actions: NDArray[np.int64]) -> StepResult:
        """Advance each of `slots` [k] by its action [k]."""
        try:
            return self.inner.step(slots, actions)
        finally:
            delays = [next(self._draws[slot]) for slot in slots.tolist()]
            if self.delay.blocking:
                self._sleep(sum(delays))
            else:
                # From now, not from the time the slot was ready: an environment cannot start its next step
                # before somebody has looked at the last one. What a worker oversleeps is lost, as in earnest.
                self._ready_at[slots] = np.add(delays, self._clock())

    def wait(self, slots: NDArray[np.int64]) -> None:
        """Return when the steps of all these slots are over."""
        while len(slots) and (left := float(self._ready_at[slots].max()) - self._clock()) > 0:
            self._sleep(left)

    def close(self) -> None:
        """Close the environments."""
        self.inner.close()
