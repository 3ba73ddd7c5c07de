"""One CAGE-2 environment with Gymnasium's interface."""

from operator import index
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rollout_worker.environments.cage2 import kernels
from rollout_worker.environments.cage2.description import describe_step, red_action_name
from rollout_worker.environments.cage2.scenario import Cage2Options
from rollout_worker.environments.cage2.slots import Cage2Slots
from rollout_worker.environments.cage2.tables import BLUE_ACTIONS, OBSERVATION_SIZE

Info = dict[str, Any]


def observation_box() -> Any:
    """Return the 52 numbers of `ChallengeWrapper`, each 0 or 1."""
    return gymnasium.spaces.Box(0, 1, (OBSERVATION_SIZE,), np.uint8)


class Cage2Env(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """The blue defender's CAGE Challenge 2, truncated after `max_steps`.

    `red` is "b_line", "meander" or "sleep" (or CybORG's class names), `rules` "current" or "leaderboard".
    With `truth` the info of a step says what Blue cannot see: red_action, red_success, blue_success.
    A seed gives the episode that this seed gives in `Cage2Slots`; a reset without one goes on from it.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "render_fps": 1}  # type: ignore[misc]  # gymnasium's is no ClassVar

    def __init__(
        self,
        red: str = "b_line",
        max_steps: int = 100,
        rules: str = "current",
        green: bool = False,
        truth: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode is {render_mode!r}; it must be None or 'ansi'")
        options = Cage2Options(rules=rules, green=green, max_steps=max_steps, red_agent=red)
        self._slots = Cage2Slots(1, options)
        self._truth = truth
        self.render_mode = render_mode
        self.observation_space = observation_box()
        self.action_space = gymnasium.spaces.Discrete(BLUE_ACTIONS)
        self._slot = np.zeros(1, np.int64)
        self._action = np.zeros(1, np.int64)
        self._reward = np.zeros(1, np.float32)
        self._truncated = np.zeros(1, np.bool_)
        self._observations = np.zeros((1, OBSERVATION_SIZE), np.uint8)
        self._rows, self._scripts = self._slots.rows, self._slots.scripts

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], Info]:
        """Begin an episode."""
        super().reset(seed=seed)
        if seed is None and self._rows[0]["length"] > 0:
            key = int(self._rows[0]["key"])
        else:
            key = seed if seed is not None else int(self.np_random.integers(2**63))
        self._observations = self._slots.reset(self._slot, np.array([key], np.uint64), [{}])
        return self._observations[0], {}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.uint8], float, bool, bool, Info]:
        """Advance by one of the 145 actions. Raises ValueError for any other and before the first reset."""
        try:
            self._action[0] = index(action)
        except TypeError:
            raise ValueError(f"action {action!r} is no integer") from None
        self._observations = observations = np.empty((1, OBSERVATION_SIZE), np.uint8)
        invalid = kernels.step_rows(
            self._rows, self._scripts, self._slot, self._action, observations, self._reward, self._truncated
        )
        if invalid != kernels.VALID:
            raise ValueError(self._slots.complaint(0, int(action)))
        return observations[0], self._reward.item(), False, self._truncated.item(), self._info()

    def render(self) -> str | None:
        """Return the last step in words, with render_mode "ansi"."""
        if self.render_mode is None:
            return None
        row = self._rows[0]
        if not row["step"]:
            return "reset"
        return f"step {int(row['step']) - 1}: {describe_step(row, self._observations[0])}"

    def _info(self) -> Info:
        if not self._truth:
            return {}
        row = self._rows[0]
        return {
            "red_action": red_action_name(int(row["outcome"]["red_kind"]), int(row["outcome"]["red_target"])),
            "red_success": int(row["red_success"]),
            "blue_success": int(row["blue_success"]),
        }
