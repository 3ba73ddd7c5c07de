"""A batch of CAGE-2 environments behind the slot interface of a rollout worker."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rollout_worker.environments.cage2 import kernels
from rollout_worker.environments.cage2.defender_view import VIEW_SIZE, VIEW_WIDTH, WIDE_VIEW_WIDTH
from rollout_worker.environments.cage2.description import describe_step
from rollout_worker.environments.cage2.options import (
    HISTORY_SIZE,
    STATE_SIZE,
    actions_named,
    observation_named,
)
from rollout_worker.environments.cage2.scenario import DEFAULTS, Cage2Options, settings_of
from rollout_worker.environments.cage2.spaces import shown_columns, spaces
from rollout_worker.environments.cage2.state import OUTCOME, ROW, initial_row
from rollout_worker.environments.cage2.tables import OBSERVATION_SIZE

StepResult = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]


class Cage2Slots:
    """Independent environments; any subset of them resets or steps in one compiled call.

    The same seed and scenario give the same episode in any slot. Because the observation "state" tells the
    steps left, an episode then terminates at its end, where others are truncated.
    """

    ready_at: NDArray[np.float64] | None = None

    def __init__(self, slots: int, options: Cage2Options = DEFAULTS) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}; it must be at least 1")
        shown, observation, actions = spaces(options), options.observation, options.actions
        self.slots, self._defaults = slots, options.scenario
        self.observation_size, self.actions, self.masked = shown.observation_size, shown.actions, shown.masked
        self.observation_dtype = np.dtype(np.uint8)
        self.max_episode_steps = shown.max_episode_steps
        self._viewed = (observation, actions) != ("bits", "full")
        chosen = actions_named(actions)
        self._compact, self._offered = chosen.compact, np.array(chosen.offered)
        self._width = WIDE_VIEW_WIDTH if chosen.masked and not chosen.compact else VIEW_WIDTH
        columns = shown_columns(observation, actions)
        breaks = (np.diff(columns) > 1) | (columns[1:] == HISTORY_SIZE)
        self._runs = np.split(columns, np.flatnonzero(breaks) + 1)  # all of the history is one
        self._complete = self.observation_size == self._width
        self._state = observation_named(observation).state
        self._mind, self._script = np.zeros(1, ROW), np.zeros(1, OUTCOME)
        self.rows: NDArray[Any] = np.zeros(slots, ROW)
        self.scripts: NDArray[Any] = np.zeros(slots, OUTCOME)
        self._views = np.zeros((slots if self._viewed else 0, VIEW_SIZE), np.uint8)
        self._bits = np.zeros((slots, OBSERVATION_SIZE), np.uint8)
        self._blank = initial_row()
        self._settings: dict[tuple[tuple[str, Any], ...], NDArray[np.int64]] = {}
        kernels.compile_kernels()

    def reset(
        self, slots: NDArray[np.int64], seeds: NDArray[np.uint64], scenarios: Sequence[Mapping[str, Any]]
    ) -> NDArray[np.uint8]:
        """Begin an episode in each of `slots` [k]; returns the first observations [k, observation_size]."""
        slots = _for_kernels(slots)
        seeds = np.ascontiguousarray(seeds, np.uint64)
        if not len(slots) == len(seeds) == len(scenarios):
            raise ValueError(f"{len(slots)} slots, {len(seeds)} seeds and {len(scenarios)} scenarios differ")
        if len(slots) and not 0 <= slots.min() <= slots.max() < self.slots:
            raise ValueError(f"a slot is outside 0..{self.slots - 1}")
        settings = np.empty((len(slots), 5), np.int64)
        for k, scenario in enumerate(scenarios):
            settings[k] = self._settings_of(scenario)
        kernels.reset_rows(self.rows, self._blank, slots, seeds, settings)
        if not self._viewed:
            return np.zeros((len(slots), OBSERVATION_SIZE), np.uint8)
        features = np.empty((len(slots), self._width), np.uint8)
        kernels.reset_views(self._views, slots, np.zeros(OBSERVATION_SIZE, np.uint8), features)
        return self._shown(slots, features)

    def step(self, slots: NDArray[np.int64], actions: NDArray[np.int64]) -> StepResult:
        """Advance `slots` [k] by `actions` [k] in one compiled call.

        Returns observations uint8 [k, observation_size], rewards float32 [k], terminated [k] (never, but for
        observation "state") and truncated [k] (from the scenario's episode_length on).

        Raises:
            ValueError: a slot or an action is out of range, or a slot was not reset; nothing has changed.
        """
        slots, actions = _for_kernels(slots), _for_kernels(actions)
        k = len(slots)
        if slots.shape != (k,) or actions.shape != (k,):
            raise ValueError(f"slots {slots.shape} and actions {actions.shape} must have one equal dimension")
        observations, rewards = np.empty((k, OBSERVATION_SIZE), np.uint8), np.empty(k, np.float32)
        terminated, truncated = np.zeros(k, np.bool_), np.empty(k, np.bool_)
        if self._viewed:
            features = np.empty((k, self._width), np.uint8)
            invalid = kernels.step_viewed_rows(
                self.rows, self.scripts, self._views, slots, actions, self._offered, self._compact,
                observations, features, rewards, truncated
            )  # fmt: skip
        else:
            invalid = kernels.step_rows(
                self.rows, self.scripts, slots, actions, observations, rewards, truncated
            )
        if invalid != kernels.VALID:
            raise ValueError(self.complaint(int(slots[invalid]), int(actions[invalid])))
        self._bits[slots] = observations
        if self._viewed:
            observations = self._shown(slots, features)
        return observations, rewards, terminated | (truncated & self._state), truncated

    def describe_step(self, slot: int) -> str:
        """Return the last step of a slot in one line, with what the challenge would show."""
        return describe_step(self.rows[slot], self._bits[slot])

    def close(self) -> None:
        """Nothing is held that outlives the object."""

    def complaint(self, slot: int, action: int) -> str:
        """Why the kernel refused to step a slot by an action."""
        if not 0 <= slot < self.slots:
            return f"slot {slot} is outside 0..{self.slots - 1}"
        if not 0 <= action < self.actions:
            return f"action {action} is outside 0..{self.actions - 1}"
        return f"slot {slot} must be reset before it can step"

    def _settings_of(self, scenario: Mapping[str, Any]) -> NDArray[np.int64]:
        key = tuple(scenario.items())
        if key not in self._settings:
            self._settings[key] = settings_of(scenario, self._defaults)
        return self._settings[key]

    def _shown(self, slots: NDArray[np.int64], features: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._complete:
            return features
        parts = [features[:, run[0] : run[-1] + 1] for run in self._runs]
        if self._state:
            states = np.empty((len(slots), STATE_SIZE), np.uint8)
            kernels.write_states(self.rows, slots, self._mind, self._script, states)
            parts.insert(1, states)
        return np.concatenate(parts, axis=1)


def _for_kernels(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return an array that the kernels are compiled for: to numba one that is read-only has another type."""
    numbers = np.ascontiguousarray(numbers, np.int64)
    return numbers if numbers.flags.writeable else numbers.copy()
