"""Any Gymnasium environment with discrete actions as slots."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces as gym_spaces
from numpy.typing import NDArray

from protocol.errors import UserError
from protocol.specs import Spaces
from rollout_worker.environments.slots import RAISED, SlotFailures, StepResult

_SEED_MASK = np.uint64(0x7FFFFFFF)
"""Environments hand their seed on to C code: 31 bits are accepted everywhere."""
_Environment = gymnasium.Env[Any, Any]


def describe(name: str, options: Mapping[str, Any], episode_length: int) -> Spaces:
    """Return what an environment shows and accepts; UserError where it has no place here."""
    environment = _make(name, options, episode_length)
    try:
        return _Reader(name, environment, episode_length).spaces
    finally:
        environment.close()


class GymnasiumSlots:
    """One Gymnasium environment per slot, stepped one after the other.

    Observations are flattened, their dtype narrowed: float64 to float32, integers to the smallest type that
    holds the space's bounds. A space {"observation", "action_mask"} is shown as the observation followed by
    the mask. An environment that raised is closed, and built again at its next reset.
    """

    ready_at: NDArray[np.float64] | None = None

    def __init__(self, name: str, slots: int, options: Mapping[str, Any], episode_length: int) -> None:
        self._recipe = (name, options, episode_length)
        self._environments: list[_Environment | None] = [_make(*self._recipe) for _ in range(slots)]
        self._reader = _Reader(name, self._made(0), episode_length)
        self._read, self._first_action = self._reader.read, self._reader.first_action
        self._limits, self._steps = [0] * slots, [0] * slots
        self.slots = slots
        self.observation_size = self._reader.spaces.observation_size
        self.observation_dtype = self._reader.dtype
        self.actions = self._reader.spaces.actions
        self.masked = self._reader.spaces.masked
        self.max_episode_steps = self._reader.spaces.max_episode_steps

    def reset(
        self, slots: NDArray[np.int64], seeds: NDArray[np.uint64], scenarios: Sequence[Mapping[str, Any]]
    ) -> NDArray[Any]:
        """Begin an episode in each slot; `episode_length` of a scenario truncates, the rest is for reset."""
        observations = np.zeros((len(slots), self.observation_size), self.observation_dtype)
        errors: dict[int, BaseException] = {}
        for row, (slot, seed, scenario) in enumerate(zip(slots.tolist(), seeds, scenarios, strict=True)):
            options = dict(scenario)
            self._limits[slot] = options.pop("episode_length", self.max_episode_steps)
            self._steps[slot] = 0
            try:
                observation, _ = self._made(slot).reset(seed=int(seed & _SEED_MASK), options=options or None)
                self._reader.read(observation, observations[row])
            except RAISED as error:
                errors[slot] = self._broken(slot, error)
        if errors:
            raise SlotFailures(errors, observations)
        return observations

    def step(self, slots: NDArray[np.int64], actions: NDArray[np.int64]) -> StepResult:
        """Advance each of `slots` [k] by its action [k]."""
        count = len(slots)
        observations = np.zeros((count, self.observation_size), self.observation_dtype)
        rewards, terminated, truncated = [0.0] * count, [False] * count, [False] * count
        errors: dict[int, BaseException] = {}
        for row, (slot, action) in enumerate(zip(slots.tolist(), actions.tolist(), strict=True)):
            self._steps[slot] += 1
            try:
                observation, reward, ended, cut, _ = self._made(slot).step(action + self._reader.first_action)
                rewards[row], terminated[row] = float(reward), bool(ended)
                truncated[row] = not ended and bool(cut or self._steps[slot] >= self._limits[slot])
                self._reader.read(observation, observations[row])
            except RAISED as error:
                errors[slot] = self._broken(slot, error)
        result = (
            observations,
            np.array(rewards, np.float32),
            np.array(terminated, np.bool_),
            np.array(truncated, np.bool_),
        )
        if errors:
            raise SlotFailures(errors, result)
        return result

    def close(self) -> None:
        """Close every environment; what they raise on the way no longer matters."""
        for slot, environment in enumerate(self._environments):
            self._environments[slot] = None
            if environment is not None:
                with contextlib.suppress(*RAISED):
                    environment.close()

    def _made(self, slot: int) -> _Environment:
        environment = self._environments[slot]
        if environment is None:
            environment = self._environments[slot] = _make(*self._recipe)
        return environment

    def _broken(self, slot: int, error: BaseException) -> BaseException:
        environment, self._environments[slot] = self._environments[slot], None
        if environment is not None:
            with contextlib.suppress(*RAISED):
                environment.close()
        return error


class _Reader:
    """How an environment's observations become rows."""

    def __init__(self, name: str, environment: _Environment, episode_length: int) -> None:
        actions, space = environment.action_space, environment.observation_space
        if not isinstance(actions, gym_spaces.Discrete):
            raise UserError(
                f"environment {name} has the action space {actions}; only Discrete(n) is supported"
            )
        self.masked = isinstance(space, gym_spaces.Dict) and set(space.keys()) == {
            "observation",
            "action_mask",
        }
        self._space = space["observation"] if self.masked and isinstance(space, gym_spaces.Dict) else space
        flat = gym_spaces.flatten_space(self._space) if self._space.is_np_flattenable else None
        if not isinstance(flat, gym_spaces.Box):
            raise UserError(
                f"environment {name} has the observation space {space}, which has no fixed flat size"
            )
        steps = episode_length or (environment.spec.max_episode_steps if environment.spec else None)
        if not steps:
            raise UserError(f"environment {name} has no time limit of its own: give --episode-length")
        self.first_action = int(actions.start)
        self.dtype = _narrow(flat)
        size, count = int(flat.shape[0]), int(actions.n)
        self._flat = isinstance(self._space, gym_spaces.Box) and len(self._space.shape) == 1
        self.spaces = Spaces(size + count * self.masked, self.dtype.name, count, self.masked, int(steps))
        if self.masked and isinstance(space, gym_spaces.Dict):
            mask = space["action_mask"]
            if mask.shape != (count,):
                raise UserError(f"environment {name} has the action mask {mask} for {count} actions")

    def read(self, observation: Any, row: NDArray[Any]) -> None:
        """Write one observation into `row` [observation_size]."""
        size = len(row)
        if self.masked:
            size -= self.spaces.actions
            row[size:] = observation["action_mask"]
            observation = observation["observation"]
        row[:size] = observation if self._flat else gym_spaces.flatten(self._space, observation)


def _make(name: str, options: Mapping[str, Any], episode_length: int) -> _Environment:
    limit = {"max_episode_steps": episode_length} if episode_length else {}
    try:
        return gymnasium.make(name, disable_env_checker=True, **limit, **options)
    except (TypeError, ValueError, gymnasium.error.Error, ImportError) as error:
        given = f" with the options {dict(options)}" if options else ""
        raise UserError(f"environment {name} cannot be made{given}: {error}") from error


def _narrow(box: gym_spaces.Box) -> np.dtype[Any]:
    """Return the smallest dtype for a flat space."""
    if box.dtype.kind == "f":
        return np.dtype(np.float32 if box.dtype.itemsize > 4 else box.dtype)
    if box.dtype.kind == "b":
        return np.dtype(np.uint8)
    bounds = np.min_scalar_type(box.low.min()), np.min_scalar_type(box.high.max())
    return np.result_type(*bounds)
