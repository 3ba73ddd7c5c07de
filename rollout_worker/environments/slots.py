"""The one interface through which a worker plays: a fixed number of independent environments, its slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

StepResult = tuple[NDArray[Any], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]
"""Observations [k, observation_size], rewards [k], terminated [k], truncated [k]."""
RAISED = (Exception, SystemExit)
"""What an environment may raise at the cost of its ticket only; its SystemExit does not end the worker."""
_REASON_CHARACTERS = 300


def failure_reason(error: BaseException) -> str:
    """Return what an environment raised in one short line."""
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"[:_REASON_CHARACTERS]


class SlotFailures(Exception):
    """Some slots of a reset or step raised; the others went on. Only resets may follow on the failed ones."""

    def __init__(self, errors: Mapping[int, BaseException], result: Any) -> None:
        super().__init__(f"{len(errors)} slots failed")
        self.errors = errors
        """What was raised, by slot."""
        self.result = result
        """What the call would have returned; the rows of failed slots mean nothing."""


class SlotEnvironments(Protocol):
    """Environments that advance one by one: any subset of the slots may reset or step at a time.

    Nothing resets by itself: a ticket seeds an episode. The attributes are those of `protocol.specs.Spaces`,
    and one more.
    """

    slots: int
    observation_size: int
    observation_dtype: np.dtype[Any]
    actions: int
    masked: bool
    max_episode_steps: int
    ready_at: NDArray[np.float64] | None
    """Where steps take time: when each slot's last step is over [slots], by `time.monotonic`. Until then its
    results are not to be looked at and it is not to be stepped. None: always at once."""

    def reset(
        self, slots: NDArray[np.int64], seeds: NDArray[np.uint64], scenarios: Sequence[Mapping[str, Any]]
    ) -> NDArray[Any]:
        """Begin an episode in each of `slots` [k]; return the observations [k, observation_size]."""
        ...

    def step(self, slots: NDArray[np.int64], actions: NDArray[np.int64]) -> StepResult:
        """Advance each of `slots` [k] by its action [k]."""
        ...

    def close(self) -> None:
        """Release what the environments hold."""
        ...
