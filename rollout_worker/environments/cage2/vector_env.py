"""A batch of CAGE-2 environments with Gymnasium's VectorEnv interface: one compiled call a step."""

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rollout_worker.environments.cage2.scenario import Cage2Options
from rollout_worker.environments.cage2.single_env import Info, observation_box
from rollout_worker.environments.cage2.slots import Cage2Slots
from rollout_worker.environments.cage2.tables import BLUE_ACTIONS, OBSERVATION_SIZE

Observations = NDArray[np.uint8]


class Cage2VectorEnv(gymnasium.vector.VectorEnv[Observations, NDArray[np.int64], NDArray[Any]]):
    """`num_envs` defenders, stepped together; the options are those of `Cage2Env` plus the autoreset mode.

    Row i seeded with s plays the episodes of a `Cage2Env` seeded with s. With `truth` the infos of a step
    hold the arrays red_kind, red_target, red_success and blue_success [num_envs].
    """

    metadata: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # gymnasium's is no ClassVar

    def __init__(
        self,
        num_envs: int = 1,
        red: str = "b_line",
        max_steps: int = 100,
        rules: str = "current",
        green: bool = False,
        truth: bool = False,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        options = Cage2Options(rules=rules, green=green, max_steps=max_steps, red_agent=red)
        self._slots = Cage2Slots(num_envs, options)
        self._mode = AutoresetMode(autoreset_mode)
        self._truth = truth
        self.num_envs = num_envs
        self.metadata = {"render_modes": [], "autoreset_mode": self._mode}  # type: ignore[misc]  # each instance has its own mode
        self.render_mode = None
        self.single_observation_space = observation_box()
        self.single_action_space = gymnasium.spaces.Discrete(BLUE_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._all = np.arange(num_envs)
        self._observations = np.zeros((num_envs, OBSERVATION_SIZE), np.uint8)
        self._over = np.zeros(num_envs, np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, Info]:
        """Begin episodes, in the rows of `options["reset_mask"]` (bool [num_envs]) or in all.

        A seed s gives row i the seed s + i, a sequence one seed each; None goes on from the row's last one.

        Raises:
            ValueError: the seeds or the mask do not fit the number of environments.
        """
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"reset_mask must be bool of shape ({self.num_envs},) with at least one True")
        super().reset(seed=seed if isinstance(seed, int) else None)
        rows = np.flatnonzero(mask)
        self._begin(rows, self._seeds(seed)[rows])
        return self._observations.copy(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Observations, NDArray[Any], NDArray[Any], NDArray[Any], Info]:
        """Advance all rows. Rows at their end follow the autoreset mode.

        Raises:
            ValueError: an action is no integer or out of range, or a row must be reset first.
        """
        if self._mode is AutoresetMode.DISABLED and self._over.any():
            raise ValueError(f"rows {np.flatnonzero(self._over)[:8]} are at their end; reset them first")
        actions = np.asarray(actions)
        if actions.dtype.kind not in "iu":
            raise ValueError(f"actions are {actions.dtype}; they must be integers")
        self._observations, rewards, terminated, truncated = self._slots.step(self._all, actions)
        ended, stepped = np.flatnonzero(truncated), np.ones(self.num_envs, np.bool_)
        infos: Info = {}
        if self._mode is AutoresetMode.NEXT_STEP:
            ended = np.flatnonzero(self._over)
            stepped[ended] = truncated[ended] = False
            rewards[ended] = 0
            self._over = truncated.copy()
        elif self._mode is AutoresetMode.DISABLED:
            self._over = truncated.copy()
            ended = ended[:0]
        elif ended.size:
            infos = self._final(truncated.copy())
        infos |= self._infos(stepped)
        if ended.size:
            self._begin(ended, self._slots.rows["key"][ended])
        return self._observations.copy(), rewards, terminated, truncated, infos

    def _begin(self, rows: NDArray[np.int64], seeds: NDArray[np.uint64]) -> None:
        self._observations[rows] = self._slots.reset(rows, seeds, [{}] * len(rows))
        self._over[rows] = False

    def _seeds(self, seed: int | Sequence[int | None] | None) -> NDArray[np.uint64]:
        """Return the seed of each row [num_envs]."""
        if isinstance(seed, int):
            return np.uint64(seed) + np.arange(self.num_envs, dtype=np.uint64)
        given = [None] * self.num_envs if seed is None else list(seed)
        if len(given) != self.num_envs:
            raise ValueError(f"{len(given)} seeds do not fit {self.num_envs} environments")
        rows = self._slots.rows
        fresh = self.np_random.integers(2**63, size=self.num_envs, dtype=np.uint64)
        onward = np.where(rows["length"] > 0, rows["key"], fresh)
        return np.array([own if own is not None else onward[i] for i, own in enumerate(given)], np.uint64)

    def _final(self, ended: NDArray[np.bool_]) -> Info:
        last = np.full(self.num_envs, None, object)
        for row in np.flatnonzero(ended):
            last[row] = self._observations[row].copy()
        infos = {"final_obs": last, "_final_obs": ended}
        return infos | {"final_info": self._infos(ended), "_final_info": ended}

    def _infos(self, present: NDArray[np.bool_]) -> Info:
        if not self._truth:
            return {}
        rows = self._slots.rows
        truth = {
            "red_kind": rows["outcome"]["red_kind"].copy(),
            "red_target": rows["outcome"]["red_target"].copy(),
            "red_success": rows["red_success"].copy(),
            "blue_success": rows["blue_success"].copy(),
        }
        return truth | {f"_{name}": present.copy() for name in truth}
